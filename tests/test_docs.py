"""The Python of docs/testing.md and docs/delivery.md runs as it stands; links lead somewhere."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from guard_agent import AgentConfig, client, guard_agent
from guard_agent.cli import main
from guard_agent.core.errors import DeliveryError, PayloadTooLargeError, PermanentClientError
from guard_agent.testing import pytest_plugin
from guard_agent.testing.collector import Answer
from guard_agent.testing.contracts import CONTRACT_VERSION
from guard_agent.testing.faults import Fault
from guard_agent.testing.records import make_event

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("p*/*/README.md")])


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


def test_the_tests_of_an_app_pass(pytester):
    """As the files of somebody who tests an app: the first block is the conftest."""
    conftest, *parts = blocks("testing.md")
    pytester.makeconftest(conftest)
    events, *collector = [part for part in parts if "contracts" not in part]
    pytester.makepyfile(test_events=events, test_collector="\n".join(collector))

    # pytest-asyncio's default is strict; who tests an app with coroutines chooses auto.
    result = pytester.runpytest_subprocess(
        "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"
    )

    result.assert_outcomes(passed=7)


def test_the_suites_of_a_plugin_pass(pytester, monkeypatch):
    """On the packages that ``guard-agent new`` writes."""
    suites = [part for part in blocks("testing.md") if "contracts" in part]
    kinds = {"transport": "my-collector", "rules": "my-rules", "enricher": "my-region"}
    for kind, name in {**kinds, "aggregator": "my-counter", "store": "my-store"}.items():
        made = CliRunner().invoke(main, ["new", kind, name, "--into", str(pytester.path)])
        assert made.exit_code == 0, made.output
    sources = [str(path) for path in pytester.path.glob("guard-agent-*/src")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sources))
    for number, suite in enumerate(suites):
        pytester.makepyfile(**{f"test_suite_{number}": suite})

    # Of the store the sequences of steps: all of it runs in tests/packaging.
    result = pytester.runpytest_subprocess(
        "-q", "-p", "no:cacheprovider", *[f"test_suite_{number}.py" for number in range(4)],
        "test_suite_4.py::TestMyStore::test_every_sequence_of_steps_has_the_result_of_the_model",
    )  # fmt: skip

    outcomes = result.parseoutcomes()
    assert outcomes.keys() == {"passed"}, result.stdout.str()
    assert outcomes["passed"] > 80
    assert len(suites) == 5


def test_the_version_of_the_suites_is_the_one_on_the_page():
    text = (DOCS / "testing.md").read_text(encoding="utf-8")

    assert f"`guard_agent.testing.contracts.CONTRACT_VERSION` is {CONTRACT_VERSION}." in text


def test_every_fixture_is_in_the_table():
    text = (DOCS / "testing.md").read_text(encoding="utf-8")
    names = [name for name in vars(pytest_plugin) if name.startswith("guard_") or "make_" in name]

    assert len(names) >= 6
    assert [name for name in names if f"`{name}`" not in text] == []


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
