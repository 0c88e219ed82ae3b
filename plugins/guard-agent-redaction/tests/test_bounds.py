"""Whatever the data, the work is bounded, nothing is raised, and a second pass finds nothing."""

from __future__ import annotations

import copy
import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guard_agent_redaction import NOT_INSPECTED
from guard_agent_redaction.names import SensitiveNames
from guard_agent_redaction.redactor import MAX_DEPTH, MAX_LEVELS, MAX_SIZE, Redactor

SIZE = 65_536

UNITS = [
    "a@", "://", "//a@", "//", "=", ":", "a:", "a=", "&a=", "token=", "token: ", "token:\t", "eyJ",
    '"', "'", "\\", '\\"', '"password": ', '"password":"\\', "'password':'\\\\", "password='",
    'session: "', "session: \\'", "[", "]", "{", '{"a":', '[{"a":1},', '["a",', "('token',", "%25",
    "%7B%22", "%", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----", "-----END ", "Bearer ", "Basic a",
    "bearer+", "4111 ", "4", "4111-1111-", "4111111111111111 ", ".", "a", "a-", "_", "\u0430",
    "\ufdfa", "\u200b", "; a=b", "a=b; ", "Cookie: ", "Cookie: a;", "Set-Cookie: a=b, ",
    'name="password"\n', 'name="password"\r\nx\n', '"name":"token","value":', "<password>",
    "token>", "<token>x", "/<token>/", " ", "\n", "\r", "\x00", "github_pat_", "ghp_", "AKIA",
    "AIza", "xox", "key ", "api key: ", "code=", "sig=a1", "sig='a1", "[REDACTED]",
    "password=[REDACTED]", "password=[", "password:           ", "secret: a b", "(token=",
    "not ", ". A", "\\u0061", "\\x3d", "auth={", "authorization=", "x-api-key:", "\ud800",
]  # fmt: skip

HEADS = ["", "token:", '"token"', "Cookie: ", "sig=", "{", '["token",', "https://", "Bearer ", "a1"]


@pytest.mark.parametrize("unit", UNITS)
def test_hostile_texts_take_linear_time(enricher, unit):
    """
    A text of 64 KiB takes milliseconds. Quadratic work takes half a minute, so the limit may be
    generous: it tells one from the other on a loaded machine too.
    """
    for head in HEADS:
        redact = enricher().bind("event")
        text = (head + unit * (SIZE // len(unit)))[:SIZE]
        start = time.process_time()
        once = redact({"reason": text})
        assert time.process_time() - start < 2.0
        assert redact(copy.deepcopy(once)) == once


@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: [text], lambda text: {"a": text}])
@pytest.mark.parametrize("more", [0, 3])
def test_json_of_many_levels_is_not_passed(redact, wrap, more):
    """
    A text is unwrapped so many times only. What is wrapped deeper is not passed unseen.
    """
    text = json.dumps({"password": "canary"})
    for _ in range(MAX_LEVELS + more):
        text = json.dumps(wrap(text))
    result = redact({"reason": text})["reason"]
    assert "canary" not in result
    assert "not inspected" in result


def test_json_of_allowed_levels_keeps_its_structure(redact):
    text = json.dumps({"password": "canary", "page": 2})
    for _ in range(MAX_LEVELS - 1):
        text = json.dumps(text)
    result = redact({"reason": text})["reason"]
    for _ in range(MAX_LEVELS):
        result = json.loads(result)
    assert result == {"password": "[REDACTED]", "page": 2}


def test_percent_encoding_of_many_levels_is_not_passed(redact):
    text = "pass%77ord=canary"
    for _ in range(MAX_LEVELS + 2):
        text = text.replace("%", "%25")
    assert redact({"reason": text})["reason"] in (NOT_INSPECTED, "pass%77ord=[REDACTED]")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 30_000 + "]" * 30_000, id="deep list"),
        pytest.param('{"a":' * 10_000 + "1" + "}" * 10_000, id="deep object"),
        pytest.param(json.dumps(list(range(9_000))), id="many nodes"),
        pytest.param("[" + "1," * 5_000 + "1]", id="many small nodes"),
        pytest.param("[" + "{}," * 2_500 + "{}]", id="many empty objects"),
        pytest.param(json.dumps({"a": "x" * 140_000}), id="long"),
        pytest.param("pin=a&" * 10_000, id="long once redacted"),
        pytest.param("\ufdfa" * 8_000, id="long once normalised"),
        pytest.param("x" * 300_000, id="long text"),
    ],
)
def test_text_beyond_the_budget_is_not_passed(redact, text):
    result = redact({"reason": text})["reason"]

    assert result.endswith(NOT_INSPECTED)
    assert len(result) <= MAX_SIZE


@pytest.mark.parametrize(
    ("before", "secret"),
    [
        ("password=", "hunter2hunter2"),
        ("Authorization: Bearer ", "canarycanarycanary"),
        ("card ", "4111 1111 1111 1111"),
        ("-----BEGIN PRIVATE KEY-----\n", "canary" * 100),
        ('{"a": {"password": "', "canary canary canary"),
    ],
)
@pytest.mark.parametrize("shift", range(0, 700, 7))
def test_no_part_of_a_secret_passes_at_a_cut(redact, before, secret, shift):
    text = "x " * ((MAX_SIZE - shift) // 2) + before + secret + " y" * MAX_SIZE
    result = redact({"reason": text})["reason"]

    assert result.endswith(NOT_INSPECTED)
    assert secret[:6] not in result


def test_all_texts_of_a_record_share_one_budget(redact):
    """Else many texts would cost what one may not."""
    record = redact({"metadata": ["token=abc&" * 100 for _ in range(50)]})

    assert record["metadata"][0] == "token=[REDACTED]&" * 100
    assert record["metadata"][49] == NOT_INSPECTED
    assert redact({"reason": "token=abc&b=c"})["reason"] == "token=[REDACTED]&b=c"


def test_a_hostile_field_does_not_hide_what_happened(redact):
    hostile = {"user_agent": "token=abc&" * 6_500, "path": "a=b&" * 10_000}
    told = {
        "endpoint": "/login?token=abc",
        "reason": "SQL injection in the body",
        "new key": "x y z",
    }
    record = redact({**hostile, **told})

    assert record["endpoint"] == "/login?token=[REDACTED]"
    assert record["reason"] == told["reason"]
    assert record["new key"] == "x y z"


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"a": inner}])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 3_000])
def test_a_field_beyond_the_depth_is_not_passed(redact, wrap, depth):
    value = "canary"
    for _ in range(depth):
        value = wrap(value)
    value = redact({"metadata": value})["metadata"]
    for _ in range(MAX_DEPTH):
        (value,) = value if isinstance(value, list) else value.values()

    assert value == NOT_INSPECTED


def test_json_in_a_text_beyond_the_depth_is_not_passed(redact):
    value = {"x": "canary"}
    for _ in range(MAX_DEPTH + 1):
        value = {"a": value}
    result = redact({"reason": json.dumps(value)})["reason"]
    assert "canary" not in result
    assert NOT_INSPECTED in result


def test_memory_is_bounded():
    """
    What is remembered does not grow with the traffic, and never holds a secret.
    """
    redactor = Redactor(SensitiveNames(always=[], extra=[], keep=[]))
    for number in range(10_000):
        redactor.record(
            {f"field{number}": f"value {number}", "a": "x" * 300 + str(number), "b": "token=canary"}
        )
        redactor.record({f"token=canary{number}": 1, "k" * 300 + str(number): 2})
    assert len(redactor._clean) + len(redactor._keys) + len(redactor._names._memo) < 10_000
    remembered = {*redactor._clean, *redactor._keys}
    assert max(map(len, remembered)) <= 256
    assert not any("canary" in text for text in remembered)


PIECES = st.sampled_from(
    [
        *UNITS, "password", "hunter2", "Authorization", "value", "https://a.test/", "?", "&", "@",
        " ", ", ", "; ", "(", ")", "<", ">", "%3D", "%22", "{}", "1234567890123456",
        "eyJabcdefghij", "set-cookie", "invalid", "null", "Bearer x", "\uff50", "\u0301", "]",
    ]
)  # fmt: skip
TEXT = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=12).map("".join))
KEY = st.one_of(TEXT, st.sampled_from(["password", "name", "value", "key", "headers", "tokens"]))
PLAIN = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT,
        st.integers(10**12, 10**19),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(KEY, inner, max_size=4),
        st.tuples(KEY, inner).map(list),
        inner.map(json.dumps),
    ),
    max_leaves=12,
)  # fmt: skip


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(KEY, PLAIN, max_size=4))
def test_any_record_is_redacted_once_and_for_all(redact, fields):
    """
    Nothing is raised, the result is JSON, and redacting it again changes nothing.
    """
    once = redact(copy.deepcopy(fields))
    json.dumps(once)
    assert redact(copy.deepcopy(once)) == once


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(before=TEXT, after=TEXT, key=st.sampled_from(["password", "X-Api-Key", "set-cookie"]))
def test_surroundings_do_not_hide_a_named_value(redact, before, after, key):
    fields = {"metadata": {before: after, "h": [[key, "s3cr3t-Canary"]], key: "s3cr3t-Canary"}}
    assert "s3cr3t-Canary" not in json.dumps(redact(fields))
