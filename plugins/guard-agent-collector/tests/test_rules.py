"""Rules: checked, published, fetched, watched, applied."""

from __future__ import annotations

import asyncio
import json

import pytest

from guard_agent import AgentConfig, guard_agent
from guard_agent.rules import sign_rules

BLOCK = {"ip_blacklist": ["203.0.113.9"], "message": "enough"}


async def publish(kit, document, **more):
    text = document if isinstance(document, str) else json.dumps(document)
    return await kit.post("/ui/rules", {"text": text, **more})


async def test_without_rules_there_is_nothing_to_fetch(start):
    kit = await start()

    response, body = await kit.get("/api/v1/rules")

    assert (response.status, body) == (204, b"")
    assert response.headers["X-Rules-Watch"] == "sse"


async def test_published_rules_are_numbered_and_have_an_etag(start):
    kit = await start()

    await publish(kit, BLOCK)
    response, said = await publish(kit, BLOCK)

    assert (response.status, said["rule_id"], said["version"]) == (200, "local", 2)
    response, body = await kit.get("/api/v1/rules")
    document = json.loads(body)
    assert (document["ip_blacklist"], document["version"]) == (["203.0.113.9"], 2)
    assert "timestamp" in document
    tag = response.headers["ETag"]
    response, body = await kit.get("/api/v1/rules", **{"If-None-Match": tag})
    assert (response.status, body) == (304, b"")


async def test_rules_are_there_again_after_a_restart(start):
    first = await start()
    await publish(first, BLOCK)
    tag = (await first.get("/api/v1/rules"))[0].headers["ETag"]
    await first.server.stop()

    second = await start()

    response, _ = await second.get("/api/v1/rules")
    assert (response.status, response.headers["ETag"]) == (200, tag)
    assert (await publish(second, BLOCK))[1]["version"] == 2


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ({"ip_blacklist": ["0.0.0.0/0"]}, "ip_blacklist"),
        ({"ip_blacklist": ["no address"]}, "ip_blacklist"),
        ({"ip_blacklist": "203.0.113.9"}, "ip_blacklist"),
        ({"suspicious_patterns": ["(a+)+$"]}, "suspicious_patterns"),
        ({**BLOCK, "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({**BLOCK, "version": "x"}, "version"),
        ({**BLOCK, "rule_id": 7}, "rule_id"),
        ("x" * (256 * 1024 + 1), "longer"),
    ],
)
async def test_what_an_agent_would_refuse_is_not_published(start, document, place):
    kit = await start()

    for path in ("/ui/rules/check", "/ui/rules"):
        text = document if isinstance(document, str) else json.dumps(document)
        response, said = await kit.post(path, {"text": text})
        assert response.status == 422
        assert place in said["error"]
    assert (await kit.get("/api/v1/rules"))[0].status == 204


async def test_checking_publishes_nothing(start):
    kit = await start()

    response, said = await kit.post("/ui/rules/check", {"text": json.dumps(BLOCK)})

    assert (response.status, said["left_out"]) == (200, [])
    assert json.loads(said["text"])["ip_blacklist"] == ["203.0.113.9"]
    assert (await kit.json("/ui/rules"))["publications"] == []


async def test_signed_rules_go_out_byte_for_byte(start):
    kit = await start()
    text = '{ "rule_id":"r",  "version": 5, "ip_blacklist":["203.0.113.9"] }'
    signature = sign_rules(text.encode(), "secret")

    await publish(kit, text, signature=signature)

    response, body = await kit.get("/api/v1/rules")
    assert body.decode() == text
    assert response.headers["X-Rules-Signature"] == signature


async def test_who_watches_is_told_at_once_and_of_every_change(start):
    kit = await start()
    async with kit.session.get(kit.url + "/api/v1/rules/watch") as response:
        lines = response.content

        async def next_tag():
            async for line in lines:
                if line.startswith(b"data:"):
                    return line[5:].decode().strip()
            return None

        assert await asyncio.wait_for(next_tag(), 30) == ""
        for _ in range(2):
            await publish(kit, BLOCK)
            tag = await asyncio.wait_for(next_tag(), 30)
            assert tag == (await kit.get("/api/v1/rules"))[0].headers["ETag"]


async def test_an_agent_has_a_published_rule_long_before_its_next_poll(
    start, tmp_path, monkeypatch
):
    """
    It polls every hour here, and is shown as one that fetched.
    """
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    kit = await start()
    agent = guard_agent(
        AgentConfig(
            api_key="test-key-0123",
            endpoint=kit.url,
            project_id="shop",
            dynamic_rule_interval=3600,
        )
    )
    try:
        await agent.start()
        assert await agent.get_dynamic_rules() is None

        async def watches():
            return [a for a in (await kit.json("/ui/agents"))["agents"] if a["watching"]] or (
                kit.server._rules.watching
            )

        await kit.until(watches)
        await publish(kit, BLOCK)

        async def has():
            rules = await agent.get_dynamic_rules()
            return rules is not None and rules.ip_blacklist == ["203.0.113.9"]

        await kit.until(has)

        async def fetched():
            (publication,) = (await kit.json("/ui/rules"))["publications"]
            return publication["agents"]

        (step,) = await kit.until(fetched)
        assert step["project"] == "shop"
        assert step["fetched"] is not None
        # Restarted, the collector is found again.
    finally:
        await agent.stop()


async def test_what_an_engine_applied_is_told_with_the_time_it_took(start, make):
    kit = await start()
    _, said = await publish(kit, BLOCK)
    applied = make(
        event_type="dynamic_rule_applied",
        timestamp="2999-01-01T00:00:00Z",  # the clock of the app may be wrong
        metadata={"rule_id": said["rule_id"], "version": said["version"]},
    )

    await kit.send(applied, **{"X-Agent-Install-Id": "a-1", "X-Project-ID": "shop"})

    (publication,) = (await kit.json("/ui/rules"))["publications"]
    (step,) = publication["agents"]
    assert (step["agent"], step["fetched"]) == ("a-1", None)
    assert publication["published"] <= step["applied"] < publication["published"] + 60
