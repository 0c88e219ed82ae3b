from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError

from guard_agent import DynamicRules, GuardAgentError, Paused, Retry, RuleSet, Unchanged
from guard_agent_polling import PollingSource

RULES = {"rule_id": "r", "version": 3, "ip_blacklist": ["192.0.2.1"]}


async def test_rules_come_as_they_are_with_their_etag(fetch, kit):
    result, collector = await fetch(
        kit.reply(200, RULES, 'ETag: W/"3"'), config={"project_id": "shop"}
    )

    assert (result.document, result.validator) == (RULES, 'W/"3"')
    assert DynamicRules(**result.document).version == 3
    (head,) = collector.requests
    assert head.startswith("get /api/v1/rules http/1.1\r\n")
    assert "x-api-key: kkkkkkkkkkkk\r\n" in head
    assert "x-project-id: shop\r\n" in head
    assert "x-agent-install-id: test-install\r\n" in head
    assert "if-none-match" not in head
    assert "content-type" not in head


async def test_l11_what_is_known_is_asked_for_and_unchanged(fetch, kit):
    result, collector = await fetch(kit.reply(304, b"", 'ETag: W/"3"'), known='W/"3"')

    assert result == Unchanged()
    assert 'if-none-match: w/"3"\r\n' in collector.requests[0]


@pytest.mark.parametrize("status", [200, 204])
async def test_l07_an_empty_answer_is_unchanged(fetch, kit, status):
    assert (await fetch(kit.reply(status)))[0] == Unchanged()


async def test_rules_without_an_etag_are_rules(fetch, kit):
    result, _ = await fetch(kit.reply(200, {}))

    assert (result.document, result.validator) == ({}, None)


@pytest.mark.parametrize("known", ["a\r\nX-Evil: 1", "ü", "", "x" * 5000])
async def test_a_validator_that_fits_no_header_is_not_sent(fetch, kit, known):
    """
    It may come from a file that somebody else wrote.
    """
    result, collector = await fetch(kit.reply(200, RULES), known=known)

    assert isinstance(result, RuleSet)
    assert "if-none-match" not in collector.requests[0]
    assert "evil" not in collector.requests[0]


async def test_an_etag_without_bounds_is_not_kept(fetch, kit):
    result, _ = await fetch(kit.reply(200, RULES, "ETag: " + "x" * 5000))

    assert (result.document, result.validator) == (RULES, None)


async def test_l09_the_signature_comes_along_with_the_bytes_it_is_for(fetch, kit):
    body = b'{ "rule_id" : "r" }'

    result, _ = await fetch(kit.reply(200, body, "X-Rules-Signature: v1=00ff"))
    assert (result.content, result.signature) == (body, "v1=00ff")

    result, _ = await fetch(kit.reply(200, body))
    assert result.signature is None


@pytest.mark.parametrize(
    "body",
    [b"[]", b"null", b"7", b'"rules"', b"<html>", b'{"version": 1', b"\xff", b"[" * 100_000],
)
async def test_l01_what_is_no_json_object_is_asked_for_again(fetch, kit, body):
    result, _ = await fetch(kit.reply(200, body))

    assert isinstance(result, Retry)
    assert result.reason.startswith("protocol: ")


@pytest.mark.parametrize(
    ("size", "kind"), [(8 * 1024 * 1024, RuleSet), (8 * 1024 * 1024 + 1, Retry)]
)
async def test_at_most_8_mib_are_read(fetch, kit, size, kind):
    body = b'{"message":"' + b"x" * (size - 14) + b'"}'

    result, _ = await fetch(kit.reply(200, body))

    assert len(body) == size
    assert isinstance(result, kind)


@pytest.mark.parametrize(
    ("status", "headers", "result", "hint"),
    [
        (500, [], Retry, "500"),
        (408, [], Retry, "408"),
        (429, ["Retry-After: 5"], Retry, "429"),
        pytest.param(401, [], Paused, "api_key", id="c11-401"),
        pytest.param(403, [], Paused, "api_key", id="c11-403"),
        (404, [], Paused, "project_id"),
        (400, [], Paused, "400"),
        (413, [], Paused, "413"),
        (422, [], Paused, "422"),
        pytest.param(302, ["Location: http://127.0.0.1:1/"], Paused, "endpoint", id="c14-302"),
    ],
)
async def test_refusals_keep_their_meaning(fetch, kit, status, headers, result, hint):
    found, _ = await fetch(kit.reply(status, {"detail": "no"}, *headers))

    assert isinstance(found, result)
    assert hint in found.reason
    assert getattr(found, "after", None) == (5.0 if headers and status == 429 else None)


async def test_a_collector_that_hangs_up_is_asked_again(fetch):
    assert isinstance((await fetch(None))[0], Retry)


async def test_a_collector_that_is_silent_is_given_up_on(fetch):
    result, _ = await fetch(b"HTTP/1.1 200 OK\r\n", deadline=0.1)

    assert isinstance(result, Retry)
    assert "0.1 s" in result.reason


async def test_cancelling_and_closing_leave_nothing(kit, tmp_path):
    async with kit.collector([b""]) as collector:
        source = kit.source(tmp_path, endpoint=collector.url)
        await source.close()
        await source.open()
        fetching = asyncio.create_task(source.fetch(None))
        while not collector.requests:
            await asyncio.sleep(0)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await source.close()
        await source.close()


@pytest.mark.parametrize("setting", ["ca_file", "client_cert_file"])
async def test_c18_a_file_of_tls_that_is_missing_is_named(kit, tmp_path, setting):
    missing = tmp_path / "missing.pem"
    source = kit.source(tmp_path, endpoint="https://c.example.com", **{setting: missing})

    with pytest.raises(GuardAgentError, match="No such file") as caught:
        await source.open()

    assert str(caught.value).startswith(f"{setting} '{missing}'")
    await source.close()


def test_l11_it_shares_the_gate_of_its_collector(kit, tmp_path):
    source = kit.source(tmp_path, {"endpoint": "https://c.example.com/guard"})

    assert source.collector == "https://c.example.com:443"


def test_the_interval_is_the_agents_unless_set(kit, tmp_path):
    config = {"dynamic_rule_interval": 120}

    assert kit.source(tmp_path, config).interval == 120
    assert kit.source(tmp_path, config, interval=1).interval == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("interval", 0.5),
        ("ca_file", ""),
        ("interval", float("inf")),
        ("endpoint", "ftp://example.com"),
        ("intervall", 5),
        ("compression_enabled", True),
    ],
)
def test_a_wrong_setting_is_refused_by_name(name, value):
    with pytest.raises(ValidationError) as caught:
        PollingSource.Settings(**{name: value})

    assert caught.value.errors()[0]["loc"] == (name,)
