"""Planted secrets in every place a record has: the secret is gone, the rest is there."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timezone
from urllib.parse import quote

import pytest

SECRET = "s3cr3t-Canary-9f2"
BASIC = base64.b64encode(f"alice:{SECRET}".encode()).decode()
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLXBhcnQ"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIICanaryKeyMaterial\n-----END RSA PRIVATE KEY-----"

# A text that holds a secret, what must not be left of it, and what should.
TEXTS = {
    "url query": (f"https://shop.test/cb?token={SECRET}&page=2", [SECRET], ["shop.test/cb?token="]),
    "url fragment": (f"https://shop.test/cb#access_token={SECRET}", [SECRET], ["#access_token="]),
    "url last": (f"GET /reset?page=2&api_key={SECRET} HTTP/1.1", [SECRET], ["page=2", "HTTP/1.1"]),
    "url camel case": (f"/x?clientSecret={SECRET}&a=1", [SECRET], ["a=1"]),
    "url nested name": (f"/x?user[password]={SECRET}&a=1", [SECRET], ["user[password]=", "a=1"]),
    "url in a url": (
        f"/go?next={quote(f'https://a.test/?token={SECRET}&b=1', safe='')}",
        [SECRET],
        ["a.test"],
    ),
    "url encoded name": (f"/x?%70assword={SECRET}", [SECRET], []),
    "url userinfo": (f"postgres://app:{SECRET}@db.test:5432/x", [SECRET], ["@db.test:5432/x"]),
    "url odd userinfo": (f"https://a:p@{SECRET}@db.test/x", [SECRET], ["@db.test/x"]),
    "url signed": (
        f"https://b.test/o?X-Amz-Signature={SECRET}{SECRET}&sig={SECRET}{SECRET}&v=1",
        [SECRET],
        ["v=1"],
    ),
    "url session": (f"/cart;jsessionid={SECRET}?a=1", [SECRET], ["/cart"]),
    "form": (f"user=bob&password={SECRET}&go=1", [SECRET], ["user=bob", "go=1"]),
    "form with commas": (f"user=bob&password=a,{SECRET}'x&go=1", [SECRET], ["go=1"]),
    "multipart": (
        f'--b\r\nContent-Disposition: form-data; name="password"\r\n\r\n{SECRET}\r\n--b--',
        [SECRET],
        ["--b--"],
    ),
    "xml": (f"<a><ns:Password>{SECRET} x</ns:Password></a>", [SECRET], ["</ns:Password></a>"]),
    "xml without anything else": (f"<password>{SECRET}</password>", [SECRET], ["</password>"]),
    "xml that is cut off": (f"<user>eve</user><password>{SECRET}", [SECRET], ["eve", "<password>"]),
    "xml that is cut off alone": (f"<password>{SECRET}", [SECRET], ["<password>"]),
    "bare cookies with padding": (f"sid={SECRET}==; theme=dark", [SECRET], ["sid="]),
    "bearer": (f"sent Bearer {SECRET} twice", [SECRET], ["Bearer", "twice"]),
    "bearer odd case": (f"bEARER   {SECRET}", [SECRET], []),
    "basic": (f"sent Basic {BASIC} twice", [BASIC], ["Basic", "twice"]),
    "basic unpadded": (f"Basic {BASIC.rstrip('=')}", [BASIC.rstrip("=")], []),
    "header line": (f"Authorization: Custom a b {SECRET}\nHost: x.test", [SECRET], ["x.test"]),
    "header lines escaped": (rf"Authorization: {SECRET}\r\nHost: x.test", [SECRET], ["x.test"]),
    "header quoted": (f"curl -H 'Authorization: X {SECRET}' x.test", [SECRET], ["x.test"]),
    "cookie line": (
        f"Cookie: a={SECRET}; theme={SECRET}",
        [SECRET],
        ["Cookie: a=[REDACTED]; theme=[REDACTED]"],
    ),
    "cookie line without a name": ("Cookie: Zm9vYmFyYmF6==; a=b", ["Zm9vYmFy"], ["; a=[REDACTED]"]),
    "set-cookie line": (
        f"Set-Cookie: zz={SECRET}; Path=/; HttpOnly",
        [SECRET],
        ["Set-Cookie: zz=[REDACTED]; Path=/; HttpOnly"],
    ),
    "set-cookie twice": (f"Set-Cookie: a=b; Path=/, c={SECRET}", [SECRET], []),
    "cookies alone": (f"theme=dark; zz={SECRET}", [SECRET], ["theme=dark; zz="]),
    "cookie by name": (f"blocked sessionid=x{SECRET}; done", [SECRET], ["done"]),
    "jwt": (f"got {JWT} from x", [JWT, JWT[:30], JWT.split(".")[2]], ["got", "from x"]),
    "aws key": ("key AKIAIOSFODNN7EXAMPLE was used", ["AKIAIOSFODNN7EXAMPLE"], ["was used"]),
    "vendor token": (f"push by ghp_{'a1B2' * 9} ok", ["a1B2a1B2"], ["push by", "ok"]),
    "pem": (f"loaded {PEM} ok", ["Canary"], ["loaded", "ok"]),
    "pem cut off": (PEM[:50], ["MIIC"], []),
    "card": ("paid 4111111111111111 ok", ["4111111111111111"], ["paid", "ok"]),
    "card spaced": ("paid 4111 1111 1111 1111.", ["4111 1111", "1111"], ["paid"]),
    "card dashed": ("paid 5500-0000-0000-0004", ["5500", "0004"], ["paid"]),
    "card amex": ("3782 822463 10005", ["822463"], []),
    "prose equals": (f"login failed: password = {SECRET} for bob", [SECRET], ["for bob"]),
    "prose colon": (f"token: {SECRET}, retry", [SECRET], ["retry"]),
    "prose with scheme": (f"token: Bearer {SECRET}", [SECRET], []),
    "prose session": (f"session: {SECRET} ended", [SECRET], ["ended"]),
    "prose two words": (f"API key: {SECRET}", [SECRET], ["API key: "]),
    "prose quoted": (f"ValueError: password='a {SECRET}' bad", [SECRET], ["bad"]),
    "prose two words quoted": (
        f"ValueError('API key: {SECRET}')",
        [SECRET],
        ["ValueError('API key: "],
    ),
    "prose several words": (
        f"login with password: correct {SECRET} battery, retry",
        ["correct", SECRET, "battery"],
        ["login with password: [REDACTED], retry"],
    ),
    "prose several words, then a pair": (
        f"secret: correct {SECRET} user=bob",
        ["correct", SECRET],
        ["secret: [REDACTED] user=bob"],
    ),
    "prose several words, then a sentence": (
        f"Password: correct {SECRET}. The login failed",
        ["correct", SECRET],
        ["Password: [REDACTED]. The login failed"],
    ),
    "prose message that tells": (f"password: not {SECRET}", [SECRET], ["password: [REDACTED]"]),
    "prose in brackets": (f"failed (token={SECRET}) twice", [SECRET], ["(token=[REDACTED]) twice"]),
    "prose in quotes": (f"'login token: {SECRET}'", [SECRET], ["'login token: [REDACTED]'"]),
    "prose end of sentence": (f"failed with token={SECRET}. Next", [SECRET], ["[REDACTED]. Next"]),
    "prose comma": (f"token: {SECRET}, retry", [SECRET], ["token: [REDACTED], retry"]),
    "bearer with other signs": (f"Bearer a*b!{SECRET}.", ["a*b", SECRET], ["Bearer [REDACTED]."]),
    "url userinfo with other signs": (
        f"redis://app:a#b?{SECRET}@db.test/x",
        ["a#b", SECRET],
        ["redis://[REDACTED]@db.test/x"],
    ),
    "aws key with its secret": (
        f"AKIAIOSFODNN7EXAMPLE:{'wJalrXUtnFEMI/K7MDENG+'}{SECRET}{'a'}",
        ["AKIAIOSFODNN7EXAMPLE", SECRET],
        [],
    ),
    "escaped name": (f"got 'p\\u0430ssword': '{SECRET}' and p\\x61ssword={SECRET}", [SECRET], []),
    "prose full width": (
        f"\uff50\uff41\uff53\uff53\uff57\uff4f\uff52\uff44\uff1d{SECRET}",
        [SECRET],
        [],
    ),
    "prose cyrillic": (f"p\u0430ssw\u043erd={SECRET}", [SECRET], []),
    "prose zero width": (f"pass\u200bword={SECRET}", [SECRET], []),
    "json": (json.dumps({"a": {"apiKey": SECRET}, "b": 1}), [SECRET], ['"b":1']),
    "json twice": (json.dumps(json.dumps({"password": SECRET, "b": 1})), [SECRET], ["b"]),
    "json in json": (json.dumps({"body": json.dumps({"pwd": SECRET})}), [SECRET], ["body"]),
    "json pairs": (json.dumps([["Authorization", SECRET], ["Host", "h"]]), [SECRET], ["Host"]),
    "json same key twice": (f'{{"a": ["pin", "{SECRET}"], "a": 1, "pin": 2}}', [SECRET], ['"a":1']),
    "json escaped name": (f'{{"p\\u0061ssword": "{SECRET}"}}', [SECRET], []),
    "json cut off": (f'{{"password": "x \\" {SECRET}", "b": [1, 2', [SECRET], ['"b": [1, 2']),
    "json cut off, escaped": (
        json.dumps(json.dumps({"password": f'x " {SECRET}', "b": 1}))[:-2],
        [SECRET],
        ["b"],
    ),
    "json cut off in the secret": (f'{{"a": 1, "password": "x {SECRET}', [SECRET], ['"a": 1']),
    "json cut off, pairs": (f'[["cookie", "{SECRET} x"], ["host", "h', [SECRET], ["host"]),
    "json cut off, named": (
        f'[{{"name": "Cookie", "value": "{SECRET}"}}, {{"name": "a", "value": "b',
        [SECRET],
        ['"value": "b'],
    ),
    "json in prose": (f'got {{"password": "a {SECRET}"}} from x', [SECRET], ["from x"]),
    "json list in prose": (f'got {{"tokens": ["a", "{SECRET}"]}}', [SECRET], ["got"]),
    "repr of a dict": (f"{{'Cookie': 'a b {SECRET}', 'n': 1}}", [SECRET], ["'n': 1"]),
    "repr of pairs": (f"[(b'authorization', b'X {SECRET}'), (b'host', b'h')]", [SECRET], ["host"]),
}

PLACES = {
    "reason": lambda text: {"reason": text},
    "user_agent": lambda text: {"user_agent": text},
    "extra field": lambda text: {"whatever": text},
    "metadata": lambda text: {"metadata": {"a": [{"b": text}]}},
    "header": lambda text: {"metadata": {"headers": {"referer": text}}},
    "list": lambda text: {"metadata": {"x": [text, text]}},
    "json text": lambda text: {"metadata": {"body": json.dumps({"x": text})}},
    "twice encoded": lambda text: {"reason": json.dumps(json.dumps({"x": [text]}))},
    "key": lambda text: {"metadata": {text: 1}},
}


@pytest.mark.parametrize("place", PLACES)
def test_of_a_key_given_twice_what_came_first_does_not_pass_unseen(redact, place):
    text = f'{{"a": ["pin", "{SECRET}"], "a": "b"}}'
    result = json.dumps(redact(PLACES[place](text)))
    assert SECRET not in result
    assert "b" in result


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", TEXTS)
def test_secret_in_a_text_is_removed(redact, case, place):
    text, secrets, _ = TEXTS[case]
    result = json.dumps(redact(PLACES[place](text)), ensure_ascii=False)
    for secret in secrets:
        assert secret not in result
    assert "[REDACTED]" in result


@pytest.mark.parametrize("case", TEXTS)
def test_text_around_a_secret_stays(redact, case):
    text, _, kept = TEXTS[case]
    result = redact({"reason": text})["reason"]
    for part in kept:
        assert part in result


NAMES = [
    "Authorization", "authorization", "Proxy-Authorization", "Cookie", "SET-COOKIE", "Set_Cookie",
    "X-Api-Key", "xApiKey", "apiKey", "api.key", "api_key", "API KEY", "x-auth-token",
    "X-CSRF-Token", "password", "Password", "passwd", "pwd", "user_pwd", "dbPassword",
    "db_password", "password2", "new-password", "secret", "client_secret", "clientSecret",
    "token", "access_token", "refreshToken", "id_token", "githubToken", "private_key", "session",
    "sessionid", "session_id", "JSESSIONID", "csrf", "csrftoken", "csrfmiddlewaretoken",
    "connect.sid", "HTTP_AUTHORIZATION", "HTTP_COOKIE", "http.request.header.authorization",
    "headers[cookie]", "b'cookie'", "aws_secret_access_key", "p\u0430ssword",
    "\uff50\uff41\uff53\uff53\uff57\uff4f\uff52\uff44", "pass\u200bword",
]  # fmt: skip

SHAPES = {
    "top level": lambda name, value: {name: value},
    "nested": lambda name, value: {"metadata": {"a": [{"b": {name: value}}]}},
    "headers": lambda name, value: {"metadata": {"headers": {"host": "h", name: value}}},
    "pairs": lambda name, value: {"metadata": {"headers": [["host", "h"], [name, value]]}},
    "name and value": lambda name, value: {"metadata": {"h": [{"name": name, "value": value}]}},
    "key and value": lambda name, value: {"metadata": {"h": [{"Key": name, "Value": value}]}},
    "json": lambda name, value: {"reason": json.dumps({"x": {name: value}})},
    "json twice": lambda name, value: {"x": json.dumps(json.dumps([{name: value}]))},
    "json pairs": lambda name, value: {"x": json.dumps([[name, value]])},
    "tags": lambda name, value: {"tags": {name: value}},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_value_of_a_sensitive_name_is_removed(redact, name, shape):
    result = json.dumps(redact(SHAPES[shape](name, SECRET)))
    assert SECRET not in result
    assert "[REDACTED]" in result


@pytest.mark.parametrize("value", [{"a": [SECRET]}, [SECRET, SECRET], 12345, 1.5])
def test_whatever_stands_under_a_sensitive_name_is_removed(redact, value):
    assert redact({"metadata": {"password": value}}) == {"metadata": {"password": "[REDACTED]"}}


@pytest.mark.parametrize("value", [None, True, False, ""])
def test_flags_and_nothing_are_no_secrets(redact, value):
    assert redact({"password": value}) == {"password": value}


def test_numbers_that_are_card_numbers_are_removed(redact):
    fields = {"metadata": {"a": 4111111111111111, "b": [4111111111111111.0], "c": 4111111111111112}}
    assert redact(fields) == {
        "metadata": {"a": "[REDACTED]", "b": ["[REDACTED]"], "c": 4111111111111112}
    }


@pytest.mark.parametrize("escape", [r"\u0077", r"\x77", "%77"])
def test_a_name_may_be_written_with_one_kind_of_escape(redact, escape):
    assert redact({"reason": f"pass{escape}ord={SECRET}"}) == {"reason": "password=[REDACTED]"}


def test_half_a_surrogate_pair_stays_the_escape_it_was(redact):
    """Unescaped it could not be encoded, and the record would be lost."""
    text = rf"pass\u0077ord={SECRET} \ud800"

    assert redact({"reason": text}) == {"reason": r"password=[REDACTED] \ud800"}


def test_a_count_beside_its_name_stays(redact):
    pairs = [{"name": "sessions", "value": 3}, {"name": "sessions", "value": SECRET}]

    assert redact({"metadata": pairs})["metadata"] == [
        {"name": "sessions", "value": 3},
        {"name": "sessions", "value": "[REDACTED]"},
    ]


def test_keys_that_become_equal_are_kept_apart(redact):
    result = redact({"m": {f"token={SECRET}": 1, f"token={SECRET}2": 2}})
    assert result == {"m": {"token=[REDACTED]": 1, "token=[REDACTED] (2)": 2}}


def test_metrics_are_redacted_too(enricher):
    redact = enricher().bind("metric")
    fields = {
        "metric_type": "response_time",
        "value": 0.5,
        "endpoint": f"/x?token={SECRET}",
        "tags": {"method": "GET", "session_id": SECRET, "url": f"https://u:{SECRET}@h.test/"},
    }
    assert redact(fields) == {
        "metric_type": "response_time",
        "value": 0.5,
        "endpoint": "/x?token=[REDACTED]",
        "tags": {
            "method": "GET",
            "session_id": "[REDACTED]",
            "url": "https://[REDACTED]@h.test/",
        },
    }


def test_time_and_idempotency_key_are_left_alone(enricher):
    redact = enricher(names=["timestamp", "idempotency_key"]).bind("event")
    now = datetime.now(timezone.utc)
    key = "12345678-4111-1111-1111-111111111111"
    fields = {"idempotency_key": key, "timestamp": now, "reason": "x"}
    assert redact(fields) == {"idempotency_key": key, "timestamp": now, "reason": "x"}
    assert list(fields) == ["idempotency_key", "timestamp", "reason"]


def test_what_is_no_json_is_not_passed(redact):
    """
    Fields are plain JSON data. Anything else cannot be looked into, so it does not leave.
    """
    assert redact({"a": {"b": b"password", "c": (1, 2)}}) == {
        "a": {"b": "[REDACTED: not inspected]", "c": "[REDACTED: not inspected]"}
    }
