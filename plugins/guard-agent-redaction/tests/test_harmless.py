"""What is no secret stays as it is, to the character."""

from __future__ import annotations

import copy
import json

import pytest

FIELDS = {
    "token_count": "1500 of 2000",
    "author": "Jane Doe",
    "authority": "example.test",
    "secretary": "John Doe",
    "session_duration": "12 minutes",
    "cookie_count": "3 cookies",
    "passwordless": "enabled",
    "password_changed_at": "2026-01-01T00:00:00Z",
    "auth_type": "bearer",
    "token_type": "bearer",
    "tokenizer": "cl100k",
    "passenger": "Jane Doe",
    "compass": "north-west",
    "bypassed_checks": ["ip", "rate"],
    "passive_mode": True,
    "key": "192.0.2.7:/login",
    "rate_limit_key": "192.0.2.7",
    "signature": "sqli-union-select",
    "sessions": 12,
    "tokens": 900,
    "cookies": 3,
    "pass": 10,
    "status_code": 403,
    "pinned": "yes, always",
    "monkey": "banana split",
    "/oauth/token": {"requests": [5, 60], "path": "/oauth/token"},
    "missing_fields": ["password", "token", "name"],
    "timing": [0.0012, 12, 1_700_000_000_000, 1_700_000_000_000_000_000],
}

TEXTS = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:109.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0",
    "text/html,application/xhtml+xml;q=0.9,image/webp;q=0.8",
    "multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW",
    "max-age=31536000; includeSubDomains; preload",
    "for=192.0.2.60; proto=https; by=203.0.113.43",
    "limit=5; window=60",
    "invalid bearer token",
    "Bearer token missing",
    "Missing header: Authorization",
    "Basic authentication required",
    "Basic Authentication is not enabled",
    'Bearer realm="api", error="invalid_token"',
    "basic plan, visual basic 6.0",
    "Invalid token: signature has expired",
    "password: must not be empty",
    "token: null",
    "session: 42 active, 3 idle",
    "auth: required, session: expired",
    "Rate limit exceeded: 101 requests in 60s (limit=100)",
    "Detected pattern match: <script>alert(1)</script>",
    "' OR '1'='1' -- ; DROP TABLE users",
    "../../../../etc/passwd",
    "..%252f..%252fetc%252fpasswd",
    "/oauth/token: 404",
    "/search?q=token&page=2&sort=author",
    "/items?code=404&key=name&state=open",
    "http://192.0.2.7:8080/a//b?x=1#top",
    "mailto:bob@example.test",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "123e4567-e89b-12d3-a456-426614174000",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "a4111111111111111b" + "c0ffee" * 4,
    "2026-01-15T10:30:00.123456+00:00",
    "0.4111111111111111",
    "1700000000000",
    "4111 1111 1111 1112",
    "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    "[2026-01-15] worker started, listening",
    '{"page": 2, "items": ["a", "b"], "note": "caf\u00e9 \\u00e9"}',
    '"quoted"',
    "a > b, token > 5, x == y",
    "São Paulo, ½ ﬁne, 東京",
    "100% of tokens used",
    "The secretary's password policy: rotate yearly",
    "password:            a=b",
    "password: \x0b\x0c a=b",
    r"\x3cscript\x3e and \u00e9",
    "[REDACTED]",
    "",
]


def test_harmless_fields_stay(redact):
    before = copy.deepcopy(FIELDS)
    assert redact({"metadata": copy.deepcopy(FIELDS), **copy.deepcopy(FIELDS)}) == {
        "metadata": before,
        **before,
    }


@pytest.mark.parametrize("text", TEXTS)
def test_harmless_texts_stay(redact, text):
    fields = {"reason": text, "metadata": {"a": [text], "body": json.dumps({"x": text})}}
    before = copy.deepcopy(fields)
    assert redact(fields) == before


def test_harmless_keys_stay(redact):
    fields = {text: 1 for text in TEXTS if "password" not in text}
    before = list(fields)
    assert list(redact({"m": fields})["m"]) == before
