from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import importlib
import json
import os
import socket
import threading
import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from guard_agent.testing.collector import Answer, Collector, Received

pytest_plugins = ["pytester"]


def event(key: str = "k1", **fields: Any) -> dict[str, Any]:
    return {"idempotency_key": key, "event_type": "ip_banned", **fields}


def post(collector: Collector, *events: dict[str, Any], **request: Any) -> httpx.Response:
    request.setdefault("json", {"events": list(events)})
    return httpx.post(f"{collector.url}/api/v1/events", trust_env=False, verify=False, **request)


def get_rules(collector: Collector, **headers: str) -> httpx.Response:
    return httpx.get(
        f"{collector.url}/api/v1/rules", headers=headers, trust_env=False, verify=False
    )


# --- taking in ------------------------------------------------------------------------------------


def test_an_event_is_kept_as_it_came(collector):
    response = post(collector, event(metadata={"a": [1, "ü"]}))

    assert (response.status_code, response.json()) == (200, {"success": True})
    assert collector.events == [event(metadata={"a": [1, "ü"]})]
    assert collector.metrics == []


@pytest.mark.parametrize("count", [0, 1, 3])
def test_any_number_of_records_makes_a_batch(collector, count):
    post(collector, *(event(str(number)) for number in range(count)))

    assert [item["idempotency_key"] for item in collector.events] == [str(n) for n in range(count)]


def test_a_batch_model_with_both_kinds_is_sorted(collector):
    post(collector, json={"events": [event()], "metrics": [{"idempotency_key": "m", "value": 1}]})

    assert len(collector.events) == 1
    assert collector.metrics == [{"idempotency_key": "m", "value": 1}]


def test_metrics_and_status_have_paths_of_their_own(collector):
    for path, body in (("metrics", {"metrics": [{"value": 2.5}]}), ("status", {"uptime": 1})):
        url = f"{collector.url}/api/v1/{path}"
        assert httpx.post(url, json=body, trust_env=False).status_code == 200

    assert collector.metrics == [{"value": 2.5}]
    assert collector.statuses == [{"uptime": 1}]


def test_a_record_sent_twice_counts_once(collector):
    post(collector, event("a"), event("b"))
    post(collector, event("b"), event("c"))

    assert [item["idempotency_key"] for item in collector.events] == ["a", "b", "c"]
    assert collector.duplicates == [event("b")]


def test_records_without_a_key_are_never_duplicates(collector):
    post(collector, {"event_type": "x"}, {"event_type": "x"})

    assert len(collector.events) == 2
    assert collector.duplicates == []


def test_a_request_is_noted_with_what_travelled(collector):
    body = json.dumps({"events": [event(reason="x" * 5000)]}).encode()
    wire = gzip.compress(body)
    post(
        collector,
        json=None,
        content=wire,
        headers={
            "Content-Type": "application/json",
            "Content-Encoding": "gzip",
            "X-Project-ID": "Shop",
        },
    )

    [request] = collector.requests
    assert (request.method, request.path, request.status) == ("POST", "/api/v1/events", 200)
    assert request.headers["x-project-id"] == "Shop"
    assert request.body == body
    assert request.wire_size == len(wire) < len(body)


def test_urllib_and_an_async_client_are_served_too(collector):
    request = urllib.request.Request(
        f"{collector.url}/api/v1/events",
        data=json.dumps({"events": [event()]}).encode(),
        headers={"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as response:
        assert response.status == 200
    assert len(collector.events) == 1


async def test_one_connection_carries_many_requests(collector):
    async with httpx.AsyncClient(base_url=collector.url, trust_env=False) as client:
        for number in range(5):
            await client.post("/api/v1/events", json={"events": [event(str(number))]})

    assert len(collector.events) == 5


def test_clear_forgets_records_but_still_knows_their_keys(collector):
    post(collector, event("a"))
    collector.clear()
    assert (collector.events, collector.requests) == ([], [])

    post(collector, event("a"))
    assert collector.events == []
    assert collector.duplicates == [event("a")]


# --- refusing -------------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}
GZIP = {**JSON, "Content-Encoding": "gzip"}


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", JSON, 400),
        (b"", JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b'{"events": [{"value": NaN}]}', JSON, 400),
        (b"[]", JSON, 422),
        (b"{}", JSON, 422),
        (b'{"metrics": []}', JSON, 422),
        (b'{"events": 1}', JSON, 422),
        (b'{"events": [1]}', JSON, 422),
        (b'{"events": [{"idempotency_key": {}}]}', JSON, 422),
        (b'{"events": []}', {"Content-Type": "text/plain"}, 415),
        (b'{"events": []}', {**JSON, "Content-Encoding": "br"}, 415),
        (b'{"events": []}', GZIP, 400),
        (gzip.compress(b'{"events": []}', mtime=0)[:-4], GZIP, 400),
        (gzip.compress(b'{"events": []}', mtime=0) + b"more", GZIP, 400),
    ],
)
def test_what_is_no_batch_is_refused_and_noted(collector, content, headers, status):
    response = post(collector, json=None, content=content, headers=headers)

    assert response.status_code == status
    assert response.json()["detail"]
    assert [request.status for request in collector.requests] == [status]
    assert collector.events == []


def test_a_body_is_bounded_after_inflation():
    bomb = gzip.compress(b" " * 1_000_000)
    assert len(bomb) < 2000
    with Collector(max_body=2000) as collector:
        response = post(collector, json=None, content=bomb, headers=GZIP)

    assert response.status_code == 413


def test_a_body_is_bounded_on_the_wire():
    with Collector(max_body=100) as collector:
        assert post(collector, event(reason="x" * 100)).status_code == 413
        assert post(collector, event()).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-API-Key": "wrong"}, 401),
        ({"X-API-Key": "k\xff".encode("latin-1")}, 401),
        ({"X-API-Key": "secret"}, 200),
        ({"Authorization": "Bearer secret"}, 200),
        ({"Authorization": "Bearer secret", "X-API-Key": "secret"}, 200),
        ({"Authorization": "Bearer wrong", "X-API-Key": "secret"}, 401),
    ],
)
def test_with_a_key_only_requests_that_carry_it_are_taken(headers, status):
    with Collector(api_key="secret") as collector:
        assert post(collector, event(), headers=headers).status_code == status
        assert get_rules(collector).status_code == 401
        assert len(collector.events) == (1 if status == 200 else 0)


def test_unknown_paths_and_wrong_methods_are_told_apart(collector):
    with httpx.Client(base_url=collector.url, trust_env=False) as client:
        assert client.post("/api/v1/api/v1/events", json={}).status_code == 404
        assert client.get("/api/v1/events").status_code == 405
        assert client.post("/api/v1/rules", json={}).status_code == 405


# --- answering ------------------------------------------------------------------------------------


def test_scripted_answers_come_in_order_and_then_the_default(collector):
    collector.answer(Answer(500), Answer(429, headers={"Retry-After": "3"}), Answer(202))

    responses = [post(collector, event(str(number))) for number in range(4)]

    assert [response.status_code for response in responses] == [500, 429, 202, 200]
    assert responses[1].headers["Retry-After"] == "3"
    assert [item["idempotency_key"] for item in collector.events] == ["2", "3"]


def test_answers_for_one_route_wait_for_it(collector):
    collector.answer(Answer(503), only="metrics")

    assert post(collector, event()).status_code == 200
    metrics = f"{collector.url}/api/v1/metrics"
    statuses = [httpx.post(metrics, json={"metrics": []}, trust_env=False) for _ in range(2)]
    assert [response.status_code for response in statuses] == [503, 200]


def test_a_script_for_posts_leaves_the_rules_alone(collector):
    collector.answer(Answer(500))

    assert get_rules(collector).status_code == 204
    assert post(collector, event()).status_code == 500


def test_the_default_answer_holds_until_it_is_restored(collector):
    collector.always(Answer(503))
    assert [post(collector, event()).status_code for _ in range(2)] == [503, 503]
    assert get_rules(collector).status_code == 204

    collector.always(None)
    assert post(collector, event()).status_code == 200
    assert collector.events == [event()]


def test_a_default_for_one_route_goes_before_the_general_one(collector):
    collector.always(Answer(503))
    collector.always(Answer(201), only="events")
    collector.always(Answer(500), only="rules")

    assert post(collector, event()).status_code == 201
    assert get_rules(collector).status_code == 500


@pytest.mark.parametrize("body", [b"<html>", {"success": False}])
def test_an_answer_says_what_it_is_told_to(collector, body):
    collector.answer(Answer(200, body=body))

    response = post(collector, event())

    assert response.content == (body if isinstance(body, bytes) else json.dumps(body).encode())


def test_an_answer_can_accept_without_storing(collector):
    collector.answer(Answer(200, store=False))

    assert post(collector, event()).status_code == 200
    assert collector.events == []


def test_a_lost_acknowledgement_stores_and_closes(collector):
    collector.answer(Answer(store=True, disconnect=True))
    with pytest.raises(httpx.RemoteProtocolError):
        post(collector, event())
    assert [request.status for request in collector.requests] == [None]

    post(collector, event())
    assert collector.events == [event()]
    assert collector.duplicates == [event()]


def test_a_plain_disconnect_stores_nothing(collector):
    collector.answer(Answer(disconnect=True))
    with pytest.raises(httpx.RemoteProtocolError):
        post(collector, event())

    assert collector.events == []


def test_a_delayed_answer_comes_late_and_complete(collector):
    collector.answer(Answer(delay=0.2))
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{collector.url}/api/v1/events", json={"events": []}, timeout=0.05)

    collector.answer(Answer(delay=0.05))
    assert post(collector, event()).status_code == 200


def test_stop_does_not_wait_for_a_delayed_answer():
    collector = Collector().start()
    collector.answer(Answer(delay=3600))
    host, port = collector.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("POST", "/api/v1/events", b'{"events": []}', JSON)
    collector.wait_for(lambda c: c.requests)

    collector.stop()

    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        connection.getresponse()
    connection.close()


# --- rules ----------------------------------------------------------------------------------------


def test_without_rules_the_answer_is_204(collector):
    assert get_rules(collector).status_code == 204


def test_published_rules_are_completed_and_served_with_an_etag(collector):
    published = collector.publish({"ip_blacklist": ["198.51.100.7"]})
    response = get_rules(collector)

    assert response.json() == published
    assert published["ip_blacklist"] == ["198.51.100.7"]
    assert published["version"] == 1
    assert {"rule_id", "timestamp"} <= published.keys()
    assert get_rules(collector, **{"If-None-Match": response.headers["ETag"]}).status_code == 304


def test_new_rules_have_a_higher_version_and_another_etag(collector):
    collector.publish({"version": 7})
    tag = get_rules(collector).headers["ETag"]
    collector.publish({})

    response = get_rules(collector, **{"If-None-Match": tag})
    assert response.json()["version"] == 8


def test_an_older_version_can_be_published_on_purpose(collector):
    collector.publish({"version": 7})
    assert collector.publish({"version": 3})["version"] == 3
    assert collector.publish({})["version"] == 8


def test_withdrawn_rules_are_gone(collector):
    collector.publish({})
    collector.publish(None)
    assert get_rules(collector).status_code == 204


def test_the_rules_route_can_be_scripted(collector):
    collector.publish({})
    collector.answer(Answer(500), Answer(200, body=b"garbage"), only="rules")

    assert get_rules(collector).status_code == 500
    assert get_rules(collector).content == b"garbage"
    assert get_rules(collector).json()["version"] == 1


# --- waiting --------------------------------------------------------------------------------------


def test_wait_for_returns_when_a_request_makes_it_true(collector):
    thread = threading.Thread(target=post, args=(collector, event()))
    thread.start()
    collector.wait_for(lambda c: len(c.events) == 1)
    thread.join()


def test_wait_for_says_what_it_got_instead(collector):
    post(collector, event("a"), event("b", event_type="rate_limited"))
    collector.answer(Answer(503))
    post(collector, event("c"))
    collector.answer(Answer(500))

    with pytest.raises(TimeoutError) as caught:
        collector.wait_for(lambda c: len(c.events) == 3, timeout=0)

    message = str(caught.value)
    assert "2 events (ip_banned: 1, rate_limited: 1)" in message
    assert "POST /api/v1/events -> 503: 1" in message
    assert "1 scripted answers left" in message


def test_an_error_in_the_predicate_reaches_the_caller(collector):
    with pytest.raises(ZeroDivisionError):
        collector.wait_for(lambda c: 1 / len(c.events))
    assert post(collector, event()).status_code == 200


# --- life -----------------------------------------------------------------------------------------


def test_a_stopped_collector_refuses_and_comes_back_with_all_it_knew():
    collector = Collector()
    with collector:
        url = collector.url
        post(collector, event("a"))
    with pytest.raises(httpx.ConnectError):
        post(collector, event("b"))

    with collector:
        assert collector.url == url
        post(collector, event("a"), event("b"))
    assert [item["idempotency_key"] for item in collector.events] == ["a", "b"]
    assert collector.duplicates == [event("a")]


def test_start_and_stop_may_be_repeated():
    collector = Collector()
    collector.stop()
    assert collector.start() is collector.start()
    assert post(collector, event()).status_code == 200
    collector.stop()
    collector.stop()


def test_another_collector_can_take_a_port_over():
    with Collector() as first:
        port = int(first.url.rpartition(":")[2])
    with Collector(port=port) as second:
        assert post(second, event()).status_code == 200


def test_a_taken_port_is_an_error():
    with Collector() as first, pytest.raises(OSError, match="in use"):
        Collector(port=int(first.url.rpartition(":")[2])).start()


def test_stop_ends_the_thread_and_open_connections():
    before = threading.active_count()
    collector = Collector().start()
    with socket.create_connection(("127.0.0.1", int(collector.url.rpartition(":")[2]))) as idle:
        idle.sendall(b"POST /api/v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        collector.stop()
        idle.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert idle.recv(1) == b""

    assert threading.active_count() == before
    assert collector.requests == []


def test_without_a_port_there_is_no_url():
    with pytest.raises(RuntimeError, match="start"):
        _ = Collector().url


def test_the_fixture_is_there_when_it_is_asked_for(pytester):
    pytester.makeconftest('pytest_plugins = ["guard_agent.testing.pytest_plugin"]')
    pytester.makepyfile(
        """
        import urllib.request

        def test_it(guard_collector):
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            opener.open(guard_collector.url + "/api/v1/rules", timeout=30).close()
            assert [request.status for request in guard_collector.requests] == [204]
        """
    )
    pytester.runpytest_inprocess("-q", "-p", "no:asyncio").assert_outcomes(passed=1)


# --- encrypted batches ----------------------------------------------------------------------------

KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.urlsafe_b64encode(bytes(range(1, 33))).decode()


def sealed(document: Any, key: str = KEY) -> str:
    aead = importlib.import_module("cryptography.hazmat.primitives.ciphers.aead")
    nonce = os.urandom(12)
    cipher = aead.AESGCM(base64.urlsafe_b64decode(key))
    return base64.urlsafe_b64encode(
        nonce + cipher.encrypt(nonce, json.dumps(document).encode(), None)
    ).decode()


def post_sealed(collector: Collector, payload: Any, **outside: Any) -> httpx.Response:
    return httpx.post(
        f"{collector.url}/api/v1/events/encrypted",
        json={"encrypted_payload": payload, "batch_id": "b", **outside},
        trust_env=False,
    )


@pytest.mark.parametrize("key", [KEY, KEY.rstrip("=")])
def test_an_encrypted_batch_of_both_kinds_is_opened(key):
    with Collector(encryption_keys=key) as collector:
        payload = sealed({"events": [event("e")], "metrics": [{"idempotency_key": "m"}]})
        response = post_sealed(collector, payload)

        assert (response.status_code, response.json()) == (200, {"success": True})
        assert collector.events == [event("e")]
        assert collector.metrics == [{"idempotency_key": "m"}]
        (request,) = collector.requests
        assert request.path == "/api/v1/events/encrypted"
        assert json.loads(request.body)["encrypted_payload"] == payload


def test_without_keys_there_is_no_place_for_encrypted_batches(collector):
    assert post_sealed(collector, sealed({"events": []})).status_code == 404


@pytest.mark.parametrize(
    ("key", "key_id", "status"),
    [
        (KEY, "old", 200),
        (OTHER_KEY, "new", 200),
        (KEY, None, 200),
        (OTHER_KEY, None, 200),
        (OTHER_KEY, "old", 403),
        (KEY, "unknown", 403),
        (base64.urlsafe_b64encode(bytes(range(2, 34))).decode(), None, 403),
    ],
)
def test_of_several_keys_the_named_one_opens_it(key, key_id, status):
    with Collector(encryption_keys={"old": KEY, "new": OTHER_KEY}) as collector:
        named = {} if key_id is None else {"key_id": key_id}
        assert post_sealed(collector, sealed({"events": [event()]}, key), **named).status_code == (
            status
        )

        assert len(collector.events) == (status == 200)


def test_the_only_key_opens_a_batch_whatever_it_is_called():
    with Collector(encryption_keys=KEY) as collector:
        assert post_sealed(collector, sealed({"events": []}), key_id="2026").status_code == 200


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (None, 422),
        (7, 422),
        ("", 422),
        ("QUJD", 422),
        ("not base64!", 422),
        ("é" * 60, 422),
        ("A" * 64, 403),
    ],
)
def test_what_is_no_encrypted_batch_is_refused(payload, status):
    with Collector(encryption_keys=KEY) as collector:
        assert post_sealed(collector, payload).status_code == status


@pytest.mark.parametrize(("inside", "status"), [([], 422), ({"metrics": []}, 422), ("x", 422)])
def test_what_is_inside_is_judged_like_a_batch_in_clear(inside, status):
    with Collector(encryption_keys=KEY) as collector:
        assert post_sealed(collector, sealed(inside)).status_code == status


@pytest.mark.parametrize("key", ["", "shor", base64.urlsafe_b64encode(bytes(31)).decode()])
def test_a_key_that_is_none_is_refused(key):
    with pytest.raises(ValueError, match="32 bytes"):
        Collector(encryption_keys=key)


# --- answers that depend on the request -----------------------------------------------------------


def test_an_answer_can_be_made_of_the_request(collector):
    seen: list[Received] = []

    def judge(request: Received) -> Answer:
        seen.append(request)
        poison = any(record["event_type"] == "poison" for record in request.records)
        return Answer(422) if poison else Answer()

    collector.always(judge)

    assert post(collector, event("a"), event("b", event_type="poison")).status_code == 422
    assert post(collector, event("a")).status_code == 200
    assert [request.status for request in seen] == [None, None]
    assert [request.status for request in collector.requests] == [422, 200]
    assert collector.ledger == {"a": 1}


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'{"events": null}', b"\xff"])
def test_a_request_that_is_no_batch_has_no_records(collector, body):
    collector.always(lambda request: Answer(400 + len(request.records)))

    headers = {"Content-Type": "application/json"}
    assert post(collector, json=None, content=body, headers=headers).status_code == 400


def test_records_can_have_a_result_each(collector):
    collector.answer(Answer(207, results=["accepted", "retry", "rejected"]))

    response = post(collector, *(event(key) for key in "abcd"))

    assert response.status_code == 207
    assert response.json() == {
        "success": False,
        "results": [
            {"index": 0, "status": "accepted"},
            {"index": 1, "status": "retry"},
            {"index": 2, "status": "rejected"},
            {"index": 3, "status": "accepted"},
        ],
    }
    assert collector.ledger == {"a": 1, "d": 1}


# --- faults ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def raw_post(collector: Collector, *events: dict[str, Any]):
    """A connection over which a batch was sent."""
    body = json.dumps({"events": events}).encode()
    address = ("127.0.0.1", int(collector.url.rpartition(":")[2]))
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(
            b"POST /api/v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        yield connection


def test_a_connection_can_be_reset(collector):
    collector.answer(Answer(fault="reset"))

    with raw_post(collector, event()) as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)
    assert [request.status for request in collector.requests] == [None]
    assert collector.ledger == {}


def test_an_answer_can_stay_away_while_the_connection_is_open(collector):
    collector.answer(Answer(fault="silent", store=True))

    with raw_post(collector, event()) as connection:
        collector.wait_for(lambda c: c.requests)
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        collector.stop()
        connection.settimeout(10)
        assert connection.recv(1) == b"", "until the collector stops"
    assert collector.ledger == {"k1": 1}


def test_an_answer_can_break_off(collector):
    collector.answer(Answer(fault="truncated"))

    with pytest.raises(httpx.RemoteProtocolError):
        post(collector, event())
    assert collector.ledger == {}


@pytest.mark.parametrize("fault", ["slow_head", "slow_body"])
def test_a_slow_answer_comes_byte_by_byte_and_completely(collector, fault):
    collector.answer(Answer(fault=fault, pace=0.002))

    response = post(collector, event())

    assert (response.status_code, response.json()) == (200, {"success": True})
    assert collector.ledger == {"k1": 1}


@pytest.mark.parametrize("fault", ["slow_head", "slow_body", "silent", "endless"])
def test_stop_does_not_wait_for_what_never_ends(fault):
    collector = Collector().start()
    collector.answer(Answer(fault=fault, pace=60))

    with raw_post(collector, event()):
        collector.wait_for(lambda c: c.requests)
        collector.stop()


@pytest.mark.parametrize("fault", ["endless", "huge"])
def test_a_body_can_be_larger_than_anybody_wants(collector, fault):
    collector.answer(Answer(fault=fault))

    with (
        httpx.Client(trust_env=False, verify=False) as client,
        client.stream(
            "POST", f"{collector.url}/api/v1/events", json={"events": [event()]}
        ) as response,
    ):
        promised = response.headers.get("Content-Length")
        size = 0
        for block in response.iter_raw():
            size += len(block)
            if size > 1024 * 1024:
                break

    assert promised == (str(100 * 1024 * 1024) if fault == "huge" else None)
    assert collector.ledger == {}


def test_a_small_body_can_become_a_large_one(collector):
    collector.answer(Answer(fault="bomb"))

    with raw_post(collector, event()) as connection:
        received = http.client.HTTPResponse(connection)
        received.begin()
        body = received.read()

    assert received.getheader("Content-Encoding") == "gzip"
    assert len(body) < 200_000
    assert len(gzip.decompress(body)) > 100 * 1024 * 1024


# --- the oracle -----------------------------------------------------------------------------------


def books(**numbers: int) -> SimpleNamespace:
    """A status with the books of one destination."""
    defaults = {"accepted": 0, "delivered": 0, "buried": 0, "pending": 0}
    return SimpleNamespace(destinations={"http": {**defaults, "dropped": {}, **numbers}})


def test_books_that_agree_are_passed(collector):
    post(collector, event("a"), event("b"))
    post(collector, event("b"))
    post(collector, {"event_type": "without a key"})

    collector.check(books(accepted=3, delivered=3))
    collector.check(books(accepted=1, delivered=1), books(accepted=2, delivered=2))
    # As when an answer was lost.
    collector.check(books(accepted=5, delivered=1, dropped={"overflow": 2}, buried=1, pending=1))
    collector.clear()
    collector.check(books(accepted=3, delivered=3))


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ({"accepted": 4, "delivered": 3}, "not balanced: 4 accepted, 3 delivered"),
        ({"accepted": 2, "delivered": 3}, "not balanced"),
        ({"accepted": 4, "delivered": 4}, "1 records count as delivered and are not here"),
        ({"accepted": 2, "delivered": 2}, "1 records are here that the agent knows nothing of"),
        ({"accepted": 2, "pending": 2}, "1 records are here that the agent knows nothing of"),
    ],
)
def test_books_that_do_not_agree_are_not(collector, numbers, complaint):
    post(collector, event("a"), event("b"), event("c"))

    with pytest.raises(AssertionError, match=complaint) as caught:
        collector.check(books(**numbers))
    assert "received: 3 events" in str(caught.value)


def test_of_several_destinations_one_has_to_be_named(collector):
    status = books(accepted=1, pending=1)
    status.destinations["jsonl"] = {**status.destinations["http"], "accepted": 2}

    collector.check(status, destination="http")
    with pytest.raises(AssertionError):
        collector.check(status, destination="jsonl")
    with pytest.raises(ValueError, match="one of: http, jsonl"):
        collector.check(status)


async def test_a_handler_that_has_to_be_awaited_is_told_apart(collector):
    class Handler:
        async def get_status(self) -> SimpleNamespace:
            return books()

    with pytest.raises(TypeError, match="await"):
        collector.check(Handler())
    collector.check(await Handler().get_status())
