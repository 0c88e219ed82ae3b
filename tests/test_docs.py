"""The Python of docs/testing.md and docs/delivery.md runs as it stands; links lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from guard_agent import AgentConfig, client, guard_agent
from guard_agent.core.errors import DeliveryError, PayloadTooLargeError, PermanentClientError
from guard_agent.testing.collector import Answer, Collector
from guard_agent.testing.faults import Fault
from guard_agent.testing.records import make_event

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("p*/*/README.md")])


def blocks(name: str) -> list[str]:
    text = (DOCS / name).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    yield
    if client._process.agent is not None:
        client._process.agent.stop().result(30)
    client._process.agent = None


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


def test_the_tests_of_the_page_pass(pytester):
    """As the files of somebody who tests an app: the first block is the conftest."""
    conftest, *parts = blocks("testing.md")
    pytester.makeconftest(conftest)
    pytester.makepyfile("\n".join(parts))

    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider")

    result.assert_outcomes(passed=3)


def test_every_fault_is_in_the_table():
    text = (DOCS / "testing.md").read_text(encoding="utf-8")

    assert [fault for fault in Fault.__args__ if f'"{fault}"' not in text] == []


async def test_dead_letters_are_listed_and_replayed(collector, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, _ = blocks("delivery.md")
    agent = guard_agent(AgentConfig(api_key="test-key-0123", endpoint=collector.url, rules=[]))
    collector.answer(Answer(422, body={"detail": "no such country"}))
    await agent.send_event(make_event())
    await agent.flush_buffer()
    code = compile(source, "delivery.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict = {}

    await eval(code, names)
    await agent.flush_buffer()

    assert names["waiting"] == 1
    (letter,) = collector.events
    said = capsys.readouterr().out
    assert said.startswith(f"http {letter['idempotency_key']} 422")
    collector.check(await agent.get_status())


def test_on_error_is_told_as_the_page_says(collector, capsys):
    _, source = blocks("delivery.md")
    names = {"KEY": "test-key-0123", "URL": collector.url}
    exec(source, names)
    config = names["config"].model_copy(update={"rules": [], "backoff_factor": 0.001})
    collector.answer(Answer(500), Answer(422))
    agent = guard_agent(config)
    agent.send_event(make_event())
    agent.flush_buffer()
    collector.wait_for(lambda c: len(c.requests) == 2)
    agent.stop()

    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("transport_send http 500")
    assert second.startswith("transport_send http the collector answered 422")


def test_the_exceptions_of_the_page_are_there():
    text = (DOCS / "delivery.md").read_text(encoding="utf-8")

    for error in (DeliveryError, PermanentClientError, PayloadTooLargeError):
        assert f"`{error.__name__}`" in text


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)

    assert lost == []
