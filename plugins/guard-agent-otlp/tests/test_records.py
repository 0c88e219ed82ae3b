from __future__ import annotations

import runpy
import string
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard_agent import Priority, Record
from guard_agent_otlp.encoding import JsonEncoding, ProtobufEncoding
from guard_agent_otlp.records import SEVERITY_NUMBERS, log_record

RESOURCE = {"service.name": "shop", "n": 1, "half": 0.5, "on": True}
SCOPE = {"name": "guard_agent", "version": "1"}

_RECEIVER = runpy.run_path(str(Path(__file__).with_name("receiver.py")))
PARSE, PARSED = _RECEIVER["parse_json"], _RECEIVER["ExportLogsServiceRequest"]


@pytest.fixture
def translate(kit):
    """The log record of a record with these fields, read back from JSON; and as attributes."""

    def translate(kind="event", severities=None, **fields):
        body = JsonEncoding(RESOURCE, SCOPE).body()
        body.add(log_record(kit.record(1, kind, **fields), severities or {}))
        (resource,) = kit.parse_json(body.finish()).resource_logs
        (log,) = resource.scope_logs[0].log_records
        return log, kit.attributes(log.attributes)

    return translate


def test_an_event_has_the_names_of_the_semantic_conventions(translate):
    log, attributes = translate(
        timestamp="2026-01-02T03:04:05.678901Z",
        event_type="penetration_attempt",
        ip_address="203.0.113.7",
        country="DE",
        user_agent="curl/8",
        action_taken="request_blocked",
        reason="SQL injection",
        endpoint="/items?id=1%27",
        method="GET",
        status_code=400,
        response_time=0.25,
        decorator_type=None,
        rule_type="sqli",
        pattern_matched="union.*select",
        handler_name="list_items",
        metadata={"score": 7, "headers": {"host": "shop"}, "tags": ["a", None, 1.5, True]},
        mine={"a": 1},
    )

    assert log.event_name == "guard.penetration_attempt"
    assert (log.severity_number, log.severity_text) == (17, "ERROR")
    assert log.body.string_value == "SQL injection"
    assert log.time_unix_nano == 1_767_323_045_678_901_000
    assert log.observed_time_unix_nano == 1_767_268_800_000_000_000
    assert (log.trace_id, log.span_id, log.flags) == (b"", b"", 0)
    assert attributes == {
        "log.record.uid": "r1",
        "client.address": "203.0.113.7",
        "geo.country.iso_code": "DE",
        "user_agent.original": "curl/8",
        "url.path": "/items",
        "url.query": "id=1%27",
        "http.request.method": "GET",
        "http.response.status_code": 400,
        "guard.event_type": "penetration_attempt",
        "guard.action_taken": "request_blocked",
        "guard.reason": "SQL injection",
        "guard.response_time": 0.25,
        "guard.rule_type": "sqli",
        "guard.pattern_matched": "union.*select",
        "guard.handler_name": "list_items",
        "guard.mine": {"a": 1},
        "guard.metadata.score": 7,
        "guard.metadata.headers": {"host": "shop"},
        "guard.metadata.tags": ["a", "", 1.5, True],
    }


def test_a_metric_is_a_log_record_too(translate):
    log, attributes = translate(
        kind="metric",
        timestamp="2026-01-02T03:04:05Z",
        metric_type="response_time",
        value=0.25,
        endpoint="/items",
        tags={"method": "GET", "status": "200"},
    )

    assert log.event_name == "guard.metric.response_time"
    assert (log.severity_number, log.severity_text) == (9, "INFO")
    assert log.body.string_value == "response_time 0.25"
    assert log.time_unix_nano == 1_767_323_045_000_000_000
    assert attributes == {
        "log.record.uid": "r1",
        "url.path": "/items",
        "guard.metric_type": "response_time",
        "guard.value": 0.25,
        "guard.tags.method": "GET",
        "guard.tags.status": "200",
    }


@pytest.mark.parametrize(
    ("event_type", "severity"),
    [
        ("ip_unbanned", "INFO"),
        ("dynamic_rule_updated", "INFO"),
        ("rate_limited", "WARN"),
        ("ip_banned", "WARN"),
        ("custom", "WARN"),
        ("penetration_attempt", "ERROR"),
        ("ip_ban_failed", "ERROR"),
        ("emergency_mode_activated", "ERROR"),
    ],
)
def test_the_severity_follows_from_the_type(translate, event_type, severity):
    log, _ = translate(event_type=event_type)

    assert (log.severity_text, log.severity_number) == (severity, SEVERITY_NUMBERS[severity])


@pytest.mark.parametrize("kind", ["event", "metric"])
def test_the_owner_may_decide_otherwise(translate, kind):
    name = {"event": "event_type", "metric": "metric_type"}[kind]

    log, _ = translate(kind, {"x": "FATAL", "y": "TRACE"}, **{name: "x"})

    assert (log.severity_text, log.severity_number) == ("FATAL", 21)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("/", {"url.path": "/"}),
        ("/a?", {"url.path": "/a"}),
        ("/a?b=?", {"url.path": "/a", "url.query": "b=?"}),
        ("https://shop.example/a?b=1", {"url.full": "https://shop.example/a?b=1"}),
        ("list_items", {"guard.endpoint": "list_items"}),
        (["/a"], {"guard.endpoint": ["/a"]}),
        ("", {}),
        (None, {}),
    ],
)
def test_an_endpoint_is_a_path_an_address_or_a_name(translate, endpoint, expected):
    _, attributes = translate(endpoint=endpoint)

    del attributes["log.record.uid"], attributes["guard.event_type"]
    assert attributes == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"method": "get"},
            {"http.request.method": "_OTHER", "http.request.method_original": "get"},
        ),
        ({"method": "DELETE"}, {"http.request.method": "DELETE"}),
        ({"method": 7}, {"guard.method": 7}),
        ({"status_code": "400"}, {"guard.status_code": "400"}),
        ({"status_code": True}, {"guard.status_code": True}),
        ({"country": "Germany"}, {"guard.country": "Germany"}),
        ({"ip_address": ""}, {}),
        ({"ip_address": ["a"]}, {"guard.ip_address": ["a"]}),
        ({"user_agent": None, "reason": ""}, {}),
        ({"metadata": "text"}, {"guard.metadata": "text"}),
        ({"big": 2**63 - 1}, {"guard.big": 2**63 - 1}),
        ({"big": 2**64 - 1}, {"guard.big": "18446744073709551615"}),
        ({"low": -(2**63)}, {"guard.low": -(2**63)}),
        ({"a": [], "b": {}, "c": [[]]}, {"guard.a": [], "guard.b": {}, "guard.c": [[]]}),
        (
            {"metadata.a": 1, "metadata": {"a": 2}},
            {"guard.metadata.a": 1, "guard.metadata.a_": 2},
        ),
    ],
)
def test_what_does_not_fit_a_convention_stays_under_guard(translate, fields, expected):
    _, attributes = translate(**fields)

    del attributes["log.record.uid"], attributes["guard.event_type"]
    assert attributes == expected


@pytest.mark.parametrize("value", [1, 1.0, 2**63, None])
def test_what_is_measured_is_of_one_type(translate, kit, value):
    """
    Backends take the type of an attribute from the first record they see.
    """
    log, attributes = translate("metric", metric_type="m", value=value)
    _, event = translate(response_time=value, value=value)

    expected = None if value is None else float(value)
    assert (attributes.get("guard.value"), event.get("guard.response_time")) == (expected,) * 2
    assert {type(attributes.get("guard.value")), type(event.get("guard.response_time"))} == {
        type(expected)
    }
    assert log.body.string_value == ("m" if value is None else f"m {value}")


TRACE, SPAN = "5B8EFFF798038103D269B633813FC60C", "eee19b7ec3c1b174"


@pytest.mark.parametrize("place", ["event", "metadata"])
def test_the_ids_of_a_trace_find_their_place(translate, place):
    ids = {"trace_id": TRACE, "span_id": SPAN}

    log, attributes = translate(**(ids if place == "event" else {"metadata": ids}))

    assert (log.trace_id.hex(), log.span_id.hex()) == (TRACE.lower(), SPAN)
    assert attributes.keys() == {"log.record.uid", "guard.event_type"}


@pytest.mark.parametrize(
    "ids",
    [
        {"trace_id": "0" * 32},
        {"trace_id": TRACE[1:]},
        {"trace_id": TRACE + "\n"},
        {"trace_id": 5},
        {"span_id": SPAN},
        {"trace_id": "z" * 32, "span_id": SPAN},
    ],
)
def test_what_is_no_id_of_a_trace_stays_an_attribute(translate, ids):
    log, attributes = translate(**ids)

    assert (log.trace_id, log.span_id) == (b"", b"")
    assert {f"guard.{name}": value for name, value in ids.items()}.items() <= attributes.items()


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01T00:00:01Z", 10**9),
        ("1970-01-01T01:00:00.000001+01:00", 1000),
        ("1970-01-01T00:00:01", 10**9),
        ("2554-07-21T23:34:33Z", 18_446_744_073 * 10**9),
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59Z", 0),
        ("2554-07-21T23:34:34Z", 0),
        ("9999-12-31T23:59:59-23:59", 0),
        ("0001-01-01T00:00:00+23:59", 0),
        ("yesterday", 0),
        (1_700_000_000, 0),
    ],
)
def test_a_time_that_fits_no_timestamp_stays_an_attribute(translate, text, nanoseconds):
    """
    Unix nanoseconds of 64 bits without a sign end in 2554.
    """
    log, attributes = translate(timestamp=text)

    assert log.time_unix_nano == nanoseconds
    assert attributes.get("guard.timestamp") == (None if nanoseconds else text)


@pytest.mark.parametrize("accepted_at", [-5.0, 1e30])
def test_a_clock_that_is_wrong_makes_no_record_unreadable(kit, accepted_at):
    body = JsonEncoding({}, SCOPE).body()
    body.add(log_record(kit.record()._replace(accepted_at=accepted_at), {}))

    (log,) = kit.parse_json(body.finish()).resource_logs[0].scope_logs[0].log_records

    assert log.observed_time_unix_nano == (0 if accepted_at < 0 else 2**64 - 1)


def test_what_is_nested_without_end_becomes_text(kit):
    deep = value = []
    for _ in range(200):
        value.append([])
        value = value[0]

    for encoding in (JsonEncoding, ProtobufEncoding):
        body = encoding({}, SCOPE).body()
        body.add(log_record(kit.record(deep=deep), {}))
        data = body.finish()
        message = (
            kit.parse_json(data)
            if encoding is JsonEncoding
            else kit.ExportLogsServiceRequest.FromString(data)
        )
        log = message.resource_logs[0].scope_logs[0].log_records[0]
        found = kit.attributes(log.attributes)["guard.deep"]
        depth = 0
        while isinstance(found, list):
            found, depth = found[0], depth + 1
        assert (depth, orjson.loads(found)[0][0] != []) == (16, True)


def test_resource_and_scope_stand_around_the_records(kit):
    body = JsonEncoding(RESOURCE, SCOPE).body()
    body.add(log_record(kit.record(), {}))

    (resource,) = kit.parse_json(body.finish()).resource_logs

    assert kit.attributes(resource.resource.attributes) == RESOURCE
    (scope,) = resource.scope_logs
    assert (scope.scope.name, scope.scope.version) == ("guard_agent", "1")
    assert resource.schema_url == scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(string.ascii_letters + ".", max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = (
    "timestamp event_type ip_address method status_code endpoint country reason metadata tags "
    "trace_id span_id idempotency_key value"
)
NAMES = st.text(string.ascii_lowercase + "._", max_size=12) | st.sampled_from(FIELDS.split())


@given(fields=st.dictionaries(NAMES, VALUES, max_size=8), kind=st.sampled_from(["event", "metric"]))
def test_both_encodings_are_one_message_whatever_a_record_holds(fields, kind):
    """
    The JSON is what the definitions allow, and says what the binary form says.
    """
    record = Record("r1", kind, Priority.ATTACK, orjson.dumps(fields), 1.0)
    messages = []
    for encoding in (JsonEncoding, ProtobufEncoding):
        body = encoding(RESOURCE, SCOPE).body()
        body.add(log_record(record, {}))
        messages.append(body.finish())

    text, binary = messages
    parsed = PARSE(text)
    assert parsed == PARSED.FromString(binary)
    (log,) = parsed.resource_logs[0].scope_logs[0].log_records
    keys = [pair.key for pair in log.attributes]
    assert len(keys) == len(set(keys))
