from __future__ import annotations

from datetime import datetime, timezone

import pytest

from guard_agent import Accepted, Partial, Paused, Reject, Retry, TooLarge
from guard_agent_http import parse_retry_after

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
MOMENT = datetime(1994, 11, 6, 8, 49, 37, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ([], None),
        (["3"], 3.0),
        ([" 3 "], 3.0),
        (["0"], 0.0),
        (["1.5"], 1.5),
        (["3600"], 3600.0),
        (["3601"], 3600.0),
        (["9" * 5000], 3600.0),
        (["-1"], None),
        (["+1"], None),
        (["1e9"], None),
        (["0x10"], None),
        (["nan"], None),
        (["inf"], None),
        (["soon"], None),
        ([""], None),
        (["٣"], None),
        (["garbage", "7"], 7.0),
        (["5", "7"], 5.0),
        ([DATE], 60.0),
        (["Sunday, 06-Nov-94 08:49:37 GMT"], 60.0),
        (["Sun Nov  6 08:49:37 1994"], 60.0),
        (["Sun, 06 Nov 2094 08:49:37 GMT"], 3600.0),
        (["Sun, 06 Nov 1993 08:49:37 GMT"], 0.0),
        (["Sun, 99 Nov 1994 08:49:37 GMT"], None),
        (["Sun, 06 Nov 1994 08:49:37 " + "x" * 5000], None),
    ],
)
def test_c07_retry_after_is_seconds_or_a_date_and_at_most_an_hour(values, seconds):
    """
    RFC 9110, section 10.2.3.
    """
    assert parse_retry_after(values, now=MOMENT - 60) == seconds


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_c01_an_empty_2xx_is_accepted(exchange, kit, status):
    result, _ = await exchange(kit.reply(status))

    assert result == Accepted()


@pytest.mark.parametrize(
    "body", [{}, {"success": True}, {"errors": []}, {"received": 1}, [], "ok", None, 7]
)
async def test_c01_a_2xx_with_json_is_accepted(exchange, kit, body):
    result, _ = await exchange(kit.reply(200, body))

    assert result == Accepted()


async def test_json_is_recognised_whatever_its_content_type(exchange, kit):
    result, _ = await exchange(kit.reply(200, {"success": True}, kind="text/plain"))

    assert result == Accepted()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>please log in</html>", "text/html; charset=utf-8"),
        (b"<html>please log in</html>", "application/json"),
        (b"7", "text/html"),
        (b"OK", "text/plain"),
        (b'{"success": tr', "application/json"),
        (b"\xff\xfe\x00", "application/json"),
        (b"[" * 20_000, "application/json"),
    ],
)
async def test_c02_a_2xx_that_is_no_json_was_not_the_collector(exchange, kit, body, kind):
    """
    A captive portal answers 200 to everything: what it swallowed is not delivered.
    """
    result, _ = await exchange(kit.reply(200, body, kind=kind))

    assert isinstance(result, Retry)
    assert result.reason.startswith("protocol: ")
    assert not result.throttled
    assert result.after is None


async def test_an_encoded_answer_is_not_unfolded(exchange, kit):
    result, _ = await exchange(kit.reply(200, b"\x1f\x8b\x08", "Content-Encoding: gzip"))

    assert isinstance(result, Retry)
    assert "gzip" in result.reason


def item(index, status, **more):
    return {"index": index, "status": status, **more}


@pytest.mark.parametrize(
    ("said", "result"),
    [
        # by position, by id, by order
        (
            {"results": [item(0, "accepted"), item(1, "rejected", error="no"), item(2, "retry")]},
            Partial({1: "no"}, frozenset({2})),
        ),
        (
            {"results": [{"idempotency_key": "r2", "status": 422, "reason": "bad"}]},
            Partial({2: "bad"}),
        ),
        ({"results": [{"id": "r0", "status": "503"}]}, Partial({}, frozenset({0}))),
        (
            {"results": [{"status": 201}, {"status": 400, "error": "x"}, {"status": 429}]},
            Partial({1: "x"}, frozenset({2})),
        ),
        ({"errors": [{"index": 1, "error": {"message": "a\nb"}}]}, Partial({1: "a b"})),
        ({"errors": {"r1": "bad field"}}, Partial({1: "bad field"})),
        ({"results": [item(0, "invalid")]}, Partial({0: "invalid"})),
        # nothing is wrong
        ({"results": [item(0, "accepted"), item(1, "duplicate"), item(2, 409)]}, Accepted()),
        ({"results": [item(0, "created"), item(9, "accepted")]}, Accepted()),
        ({"results": "many"}, Accepted()),
        ({"results": [1, None, []]}, Accepted()),
        # a word nobody agreed on, or a position that is none, costs no record
        ({"results": [item(0, "postponed")]}, Partial({}, frozenset({0}))),
        ({"results": [item(True, "rejected"), item(1, "rejected")]}, Partial({1: "rejected"},
         frozenset({0, 2}))),
        (
            {"results": [item(9, "rejected"), item(0, "accepted")]},
            Partial({}, frozenset({1, 2})),
        ),
        # the answer as a whole is no, so what it does not mention stays
        (
            {"success": False, "errors": [{"index": 1, "error": "no"}]},
            Partial({1: "no"}, frozenset({0, 2})),
        ),
        (
            {"success": False, "results": [item(0, "accepted"), item(1, "rejected", error="no")]},
            Partial({1: "no"}, frozenset({2})),
        ),
    ],
)  # fmt: skip
async def test_c03_an_answer_per_record_is_followed(exchange, kit, said, result):
    assert (await exchange(kit.reply(200, said), batch=kit.batch(3)))[0] == result


@pytest.mark.parametrize(
    "said",
    [
        {"success": False},
        {"success": False, "errors": ["the database is down"]},
        {"errors": ["the database is down"]},
        {"errors": "the database is down"},
        {"errors": [{"index": 99, "error": "which one?"}]},
    ],
)
async def test_c03_a_no_without_naming_records_is_retried(exchange, kit, said):
    result, _ = await exchange(kit.reply(200, said), batch=kit.batch(3))

    assert isinstance(result, Retry)
    assert "did not take it" in result.reason


@pytest.mark.parametrize(
    ("status", "headers", "after", "throttled"),
    [
        pytest.param(429, [], None, True, id="c05"),
        pytest.param(429, ["Retry-After: 3"], 3.0, True, id="c05-after"),
        pytest.param(429, ["Retry-After: x", "Retry-After: 4"], 4.0, True, id="c07-garbage"),
        pytest.param(429, ["Retry-After: nan"], None, True, id="c07-nan"),
        pytest.param(429, ["Retry-After: 1000000000"], 3600.0, True, id="c07-far"),
        pytest.param(503, ["Retry-After: 3"], 3.0, True, id="c05-503"),
        pytest.param(503, ["Retry-After: -3"], None, False, id="c07-negative"),
        (503, [], None, False),
        (500, [], None, False),
        (502, [], None, False),
        (504, [], None, False),
        (599, [], None, False),
        (408, [], None, False),
        (425, [], None, False),
    ],
)
async def test_c05_c07_trouble_at_the_collector_is_retried(
    exchange, kit, status, headers, after, throttled
):
    result, _ = await exchange(kit.reply(status, {"detail": "later"}, *headers))

    assert isinstance(result, Retry)
    assert (result.after, result.throttled) == (after, throttled)
    assert str(status) in result.reason
    assert "later" in result.reason


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (300, "endpoint"),
        (304, "endpoint"),
        pytest.param(401, "api_key", id="c11-401"),
        (402, "account"),
        pytest.param(403, "api_key", id="c11-403"),
        pytest.param(404, "endpoint", id="c12-404"),
        pytest.param(405, "endpoint", id="c12-405"),
        (407, "proxy"),
        pytest.param(410, "endpoint", id="c13-410"),
        (415, "compression_enabled"),
        (426, "endpoint"),
    ],
)
async def test_what_a_person_must_mend_pauses_and_says_what_to_check(exchange, kit, status, hint):
    result, _ = await exchange(kit.reply(status))

    assert isinstance(result, Paused)
    assert hint in result.reason
    assert str(status) in result.reason


@pytest.mark.parametrize("status", [400, 409, 418, 422, 499])
async def test_c09_a_payload_at_fault_is_rejected(exchange, kit, status):
    result, _ = await exchange(kit.reply(status, {"detail": "field x"}))

    assert isinstance(result, Reject)
    assert result.status == status
    assert "field x" in result.reason


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        (b"", None),
        ({"limit": 65536}, 65536),
        ({"detail": "too large", "max_bytes": 1000}, 1000),
        ({"limit": True}, None),
        ({"limit": -1}, None),
        ({"limit": "64k"}, None),
        ([65536], None),
        (b"<html>", None),
    ],
)
async def test_c08_413_is_too_large_with_the_limit_it_names(exchange, kit, body, limit):
    assert (await exchange(kit.reply(413, body)))[0] == TooLarge(limit)


@pytest.mark.parametrize("status", [101, 600, 999])
async def test_a_status_that_is_none_is_retried(exchange, kit, status):
    result, _ = await exchange(kit.reply(status))

    assert isinstance(result, Retry)


async def test_a_reason_is_one_short_clean_line_without_the_key(exchange, kit):
    body = f"no\r\n\x1b[31m key {kit.key} \u202e".encode() + b"\xff" + b"long " * 1000

    result, _ = await exchange(kit.reply(422, body, kind="text/plain"))

    assert isinstance(result, Reject)
    assert "no [31m key *** \ufffdlong" in result.reason
    assert result.reason.isprintable()
    assert len(result.reason) < 250
    assert kit.key not in result.reason
