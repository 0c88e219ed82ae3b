"""The Python of the README runs as it stands."""

from __future__ import annotations

import ast
import asyncio
import re
import types
from pathlib import Path

import httpx
import orjson
import pytest

from guard_agent import Accepted, AgentConfig, Batch, Retry, client
from guard_agent.core.assembly.composition import compose
from guard_agent.core.assembly.registry import Registry
from guard_agent.testing.records import make_context, make_record

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def block(part: str) -> str:
    (found,) = (text for text in BLOCKS if part in text)
    return found


def test_every_block_is_used_here():
    parts = (
        "SecurityMiddleware, config",
        "agent_lifespan()",
        "await agent.start()",
        "TcpTransport",
    )
    assert sorted(map(block, parts)) == sorted(BLOCKS)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    forget_agent()
    yield
    forget_agent()


def forget_agent() -> None:
    """As in a process that has made none; a lifespan would start a stopped one again."""
    if client._process.agent is not None:
        client._process.agent.stop().result(30)
    client._process.agent = None


def run(source: str, names: dict) -> dict:
    """Run a block that may await at its top, as a notebook does."""
    code = compile(source, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = types.FunctionType(code, names)()
    if result is not None:

        async def wait() -> None:
            await result

        asyncio.run(wait())
    return names


async def test_the_lines_for_fastapi_guard_report_and_the_lifespan_delivers(collector):
    source = block("SecurityMiddleware, config")
    names = run(source, {"KEY": "test-key-0123", "URL": collector.url})
    later = run(block("agent_lifespan()"), {"FastAPI": names["FastAPI"]})
    app = later["app"]
    app.add_middleware(names["SecurityMiddleware"], config=names["setup"])

    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as visitor,
    ):
        await visitor.get("/", headers={"User-Agent": "Mozilla/5.0"})

    assert {metric["metric_type"] for metric in collector.metrics} >= {"request_count"}


def test_the_agent_on_its_own(collector):
    source = block("await agent.start()").replace("https://collector.example.com", collector.url)

    run(source, {})

    (event,) = collector.events
    assert event["ip_address"] == "192.168.1.100"


def test_the_transport_is_a_plugin_that_delivers():
    module = types.ModuleType("your_package_tcp")
    run(block("TcpTransport"), module.__dict__)
    registry = Registry.from_environment()
    registry.register(module, name="tcp")
    config = AgentConfig(
        api_key="test-key-0123", transports=["tcp"], plugins={"tcp": {"host": "127.0.0.1"}}
    )

    (step,) = compose(config, registry).transports

    async def deliver() -> list[bytes]:
        lines: list[bytes] = []
        ended = asyncio.Event()

        async def serve(reader, writer):
            lines.extend((await reader.read()).splitlines())
            writer.close()
            ended.set()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            settings = step.cls.Settings(host="127.0.0.1", port=port)
            transport = step.cls(settings, make_context())
            batch = Batch("event", (make_record(), make_record()))
            assert await transport.send(batch) == Accepted()
            await ended.wait()
        assert isinstance(await transport.send(batch), Retry), "nobody listens any more"
        return lines

    events = [orjson.loads(line) for line in asyncio.run(deliver())]
    assert len(events) == 2
