"""
Every block of code on the pages is tried.

Configurations are read by the real loader and composed with the plugins that are installed, or that
the page itself defines. Commands are parsed by the real command. Python runs, here or in the test
that `RUN_BY` names. A block in a language that is not known here fails, and so does a further block
of Python on a page that nobody runs.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shlex
import sys
import types
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
import httpx
import orjson
import pytest
from click.testing import CliRunner
from hypothesis import settings as hypothesis_settings

from guard_agent import AgentConfig, GuardAgentHandler, guard_agent
from guard_agent.cli import main
from guard_agent.core.assembly.composition import compose
from guard_agent.core.assembly.configfile import load_config, read_config
from guard_agent.core.assembly.inspection import SEAMS, TRANSPORT, check_class
from guard_agent.core.assembly.registry import Registry
from guard_agent.testing.contracts import EnricherContract
from guard_agent.testing.contracts.state_machine import STATES
from guard_agent.testing.records import make_event

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["guard_agent.testing.pytest_plugin"]

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("p*/*/README.md")],
    key=lambda path: path.as_posix(),
)
RUN_BY = {
    "README.md": (4, "tests/test_readme.py"),
    "CONTRIBUTING.md": (1, __name__),
    "docs/delivery.md": (2, "tests/test_docs.py"),
    "docs/lifecycle.md": (6, "tests/test_lifecycle_docs.py"),
    "docs/operate.md": (1, __name__),
    "docs/privacy.md": (1, __name__),
    "docs/start.md": (2, __name__),
    "docs/testing.md": (11, "tests/test_docs.py"),
    "docs/write/aggregator.md": (2, __name__),
    "docs/write/enricher.md": (3, __name__),
    "docs/write/rules.md": (2, __name__),
    "docs/write/store.md": (2, __name__),
    "docs/write/transport.md": (2, __name__),
    "packaging/fastapi-guard-agent/README.md": (1, __name__),
    "plugins/guard-agent-collector/README.md": (1, __name__),
    "plugins/guard-agent-http/README.md": (2, "plugins/guard-agent-http/tests and here"),
}
"""Page → how many blocks of Python it has, and where they run."""

SECRET = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="  # 32 bytes in base64
VARIABLES = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20x",
    "OTEL_RESOURCE_ATTRIBUTES": "host.name=web-1",
}
PROGRAMS = {
    "wait",
    "cd",
    "curl",
    "echo",
    "export",
    "guard-agent",
    "make",
    "pip",
    "pytest",
    "python",
    "uvicorn",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each block."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@contextmanager
def known_as(name: str, module: types.ModuleType) -> Iterator[None]:
    """It can be imported. What is imported meanwhile stays: other modules hold on to it."""
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]


def python_of(page: str) -> list[str]:
    return [text for language, text in blocks(page) if language == "python"]


ALL = [
    pytest.param(page, language, text, id=f"{page}-{number}")
    for page in map(name_of, PAGES)
    for number, (language, text) in enumerate(blocks(page))
]


def of(*languages: str) -> list:
    return [param for param in ALL if param.values[1] in languages]


@pytest.fixture(autouse=True)
def _alone(surroundings):
    """Each test in a folder and with an agent of its own."""


def test_every_block_is_in_a_language_that_is_tried():
    languages = {param.values[1] for param in ALL}

    # Without a language, and as text: what a program prints, and lines for other programs.
    assert languages <= {"", "text", "python", "toml", "yaml", "console", "bash", "json"}


def test_somebody_runs_every_block_of_python():
    found = {page: len(python_of(page)) for page in map(name_of, PAGES) if python_of(page)}

    assert found == {page: count for page, (count, _) in RUN_BY.items()}


# --- configurations -------------------------------------------------------------------------------


def registry_for(page: str) -> Registry:
    """What is installed, and what the page defines itself."""
    registry = Registry.from_environment()
    for source in python_of(page):
        if "@hookimpl" in source:
            module = types.ModuleType("of_the_page")
            with known_as("of_the_page", module):
                exec(source, module.__dict__)
            (name,) = re.findall(r"^    name = \"(.+)\"$", source, re.MULTILINE)
            registry.register(module, name=name)
    return registry


def in_use(config: AgentConfig, registry: Registry) -> dict[str, list[str]]:
    """The lists of plugins, with those that have a section only."""
    changes: dict[str, list[str]] = {}
    for name in config.plugins:
        classes = registry.load(name.partition("/")[0]).classes
        for seam in SEAMS:
            listed = getattr(config, seam.option)
            if seam.kind in classes and seam.option != "store" and name not in listed:
                changes.setdefault(seam.option, list(listed)).append(name)
    return changes


@pytest.mark.parametrize(("page", "language", "text"), of("toml", "yaml"))
def test_a_configuration_is_one(page, language, text, tmp_path, monkeypatch):
    if language == "toml" and "[tool.guard-agent" not in text:
        check_project(text)
        return
    path = tmp_path / ("pyproject.toml" if language == "toml" else "guard-agent.yaml")
    path.write_text(text, encoding="utf-8")
    for name in re.findall(r"\$\{env:(\w+)", text):
        monkeypatch.setenv(name, VARIABLES.get(name, SECRET))
    key = {} if re.search(r"^api_key", text, re.MULTILINE) else {"api_key": "test-key-0123"}
    registry = registry_for(page)

    config = load_config(path, **key)
    plan = compose(config.model_copy(update=in_use(config, registry)), registry)

    assert plan.problems == ()
    assert plan.explain()


def check_project(text: str) -> None:
    """A part of the pyproject.toml of a plugin."""
    toml = __import__("tomllib" if sys.version_info >= (3, 11) else "tomli")
    document = toml.loads(text)

    assert document.keys() <= {"project", "tool"}
    entry_points = document["project"]["entry-points"]["guard_agent"]
    assert all(re.fullmatch(r"[\w.]+", module) for module in entry_points.values())


# --- commands -------------------------------------------------------------------------------------


def lines_of(language: str, text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    if language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if not line.lstrip().startswith("#") and line.strip()]


@pytest.mark.parametrize(("page", "language", "text"), of("console", "bash"))
def test_commands_are_there(page, language, text, monkeypatch):
    lines = lines_of(language, text)
    assert lines
    for line in lines:
        program, *arguments = shlex.split(line.removesuffix(" &"), comments=True)
        program = program.rpartition("/")[2]
        assert program in PROGRAMS, f"say in this test how to try {program}"
        if program == "guard-agent":
            parse(arguments)
        elif program == "export":
            name, _, value = arguments[0].partition("=")
            monkeypatch.setenv(name, value)
        elif program == "make":
            check_make(arguments)
        elif program == "pip" or arguments[:2] == ["-m", "pip"]:
            check_pip(arguments[arguments.index("install") + 1 :])
        elif program == "python" and arguments[0] == "-m":
            assert find_spec(arguments[1]), line
        elif program == "python":
            assert arguments[0] == "-c"
            exec(arguments[1], {})
    if "export" in text:
        # Secrets lie in files that are not here, and the agent may be configured elsewhere.
        assert {problem.code for problem in read_config().problems} <= {"GA306", "GA307"}


def parse(arguments: list[str]) -> None:
    """Whether the command takes these arguments, and can say what it does."""
    command: click.Command = main
    context = click.Context(main, info_name="guard-agent")
    path = []
    while isinstance(command, click.Group):
        path.append(arguments.pop(0))
        found = command.get_command(context, path[-1])
        assert found is not None, f"there is no command {' '.join(path)}"
        command = found
        context = click.Context(command, info_name=path[-1], parent=context)
    command.make_context(path[-1], arguments, parent=context.parent)
    help_ = CliRunner().invoke(main, [*path, "--help"])
    assert help_.exit_code == 0
    assert "Usage: " in help_.output


def check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in arguments:
        variable = word.partition("=")[0]
        form = rf"^{variable} \?=" if "=" in word else rf"^{word}:"
        assert re.search(form, makefile, re.MULTILINE), word


def check_pip(arguments: list[str]) -> None:
    """Packages of ours with their extras; files and folders that are there."""
    toml = __import__("tomllib" if sys.version_info >= (3, 11) else "tomli")
    projects = [
        toml.loads(path.read_text(encoding="utf-8"))["project"]
        for path in [ROOT / "pyproject.toml", *ROOT.glob("p*/*/pyproject.toml")]
    ]
    extras = {one["name"]: one.get("optional-dependencies", {}).keys() for one in projects}
    for word in arguments:
        if word.startswith("-"):
            assert word in {"-c", "-e", "--upgrade"}
        elif word.startswith(".[") or "/" in word or word in {".", "constraints.txt"}:
            assert (ROOT / word.partition("[")[0]).exists(), word
        elif word.startswith(("guard-agent", "fastapi-guard-agent")):
            name, _, extra = word.rstrip("]").partition("[")
            assert name in extras, word
            assert not extra or extra in extras[name], word
        else:
            assert re.fullmatch(r"[a-zA-Z][\w.-]*(; .+)?", word), word


def test_without_make_the_same_is_installed():
    """The lines for those who have no make name every distribution, and every tool of it."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    tools = dict(re.findall(r"^(BUILD_TOOLS|TOOLS) := (.+)$", makefile, re.MULTILINE))
    (block,) = (text for language, text in blocks("CONTRIBUTING.md") if "pip install -c" in text)
    ours, others = (shlex.split(line)[4:] for line in lines_of("bash", block))

    folders = {
        path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("p*/*/pyproject.toml")
    }
    assert {word for word in ours if word != "-e"} == {".", *folders}
    wanted = tools["TOOLS"].replace("$(BUILD_TOOLS)", tools["BUILD_TOOLS"])
    assert sorted(others) == sorted(shlex.split(wanted))


@pytest.mark.parametrize("page", list(map(name_of, PAGES)))
def test_commands_in_sentences_are_there(page):
    text = re.sub(
        r"^```.*?^```$", "", (ROOT / page).read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    known = main.list_commands(click.Context(main))
    named = re.findall(r"`guard-agent (?!guard-agent)([a-z][a-z-]*)", text)

    assert [name for name in named if name not in known] == []


@pytest.mark.parametrize(("page", "language", "text"), of("json"))
def test_json_is_json(page, language, text):
    assert json.loads(text)


# --- Python ---------------------------------------------------------------------------------------


def run(source: str, names: dict) -> dict:
    """Run a block that may await at its top."""
    code = compile(source, "a page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    waiting = types.FunctionType(code, names)()
    if waiting is not None:
        asyncio.run(_wait(waiting))
    return names


async def _wait(waiting) -> None:
    await waiting


@pytest.fixture
def start(tmp_path):
    """The page, its app and its configuration in the working folder."""
    found = blocks("docs/start.md")
    local, _ = (text for language, text in found if language == "yaml")
    (tmp_path / "guard-agent.yaml").write_text(local, encoding="utf-8")
    return python_of("docs/start.md")


def events_in(path: Path) -> list[dict]:
    lines = path.joinpath("security-events.jsonl").read_bytes().splitlines()
    return [event for event in map(orjson.loads, lines) if "event_type" in event]


async def test_five_minutes_lead_to_an_event(start, tmp_path, capfd):
    names: dict = {}
    exec(start[0], names)
    app = names["app"]
    (attack,) = re.findall(r"8000(/items\S+)'", (ROOT / "docs/start.md").read_text("utf-8"))

    transport = httpx.ASGITransport(app, client=("192.0.2.1", 50_000))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://app") as visitor,
    ):
        answer = await visitor.get(attack, headers={"User-Agent": "Mozilla/5.0"})

    assert answer.status_code == 400
    (event,) = [e for e in events_in(tmp_path) if e["event_type"] == "penetration_attempt"]
    assert event["ip_address"] == "192.0.2.1"
    assert 700 <= len(orjson.dumps(event)) <= 950, "docs/operate.md reckons with 800 bytes"
    assert "penetration_attempt" in capfd.readouterr().err


async def test_the_collector_runs_in_a_program(tmp_path):
    """Until it has the three records that the page waits for."""
    said: list[str] = []
    names: dict = {"print": said.append}
    (block,) = python_of("plugins/guard-agent-collector/README.md")
    exec(block, names)
    running = asyncio.create_task(names["run"]())
    while not said:
        assert not running.done(), running.result()
        await asyncio.sleep(0.01)
    agent = GuardAgentHandler(AgentConfig(api_key="test-key-0123", endpoint=said[0], rules=[]))
    for number in range(3):
        await agent.send_event(make_event(reason=str(number)))
    await agent.flush_buffer()

    await asyncio.wait_for(running, 30)

    assert (tmp_path / "collector.db").exists()
    await agent.stop()


def test_without_a_middleware_there_is_an_event_too(start, tmp_path):
    run(start[1], {})

    (event,) = events_in(tmp_path)
    assert event["reason"] == "the third time for jane"


async def test_health_says_what_waits(collector):
    names: dict = {}
    exec(python_of("docs/operate.md")[0], names)
    collector.stop()
    agent = guard_agent(AgentConfig(api_key="test-key-0123", endpoint=collector.url, rules=[]))
    await agent.start()
    await agent.send_event(make_event())

    health = await names["health"]()

    assert health["waiting"] == {"http": 1}
    assert health["dead"] == {"http": 0}
    assert health["dropped"] == {"http": {}}
    assert health["status"] in {"healthy", "degraded"}


def test_the_sizes_of_the_page_are_those_of_the_code():
    text = (ROOT / "docs/operate.md").read_text("utf-8")
    bound = AgentConfig.model_fields["max_buffer_records"].default
    disk = 256 * 1024 * 1024 / 800

    assert "| 1 event a second | 2 hours 45 minutes | 4 days |" in text
    assert bound / 3600 == pytest.approx(2.75, abs=0.05)
    assert disk / 86_400 == pytest.approx(4, abs=0.3)
    assert "| 1,000 a second | 10 seconds | 5 minutes |" in text
    assert bound / 1000 == 10
    assert disk / 1000 / 60 == pytest.approx(5, abs=0.7)


def test_the_test_for_privacy_passes(guard_events):
    names: dict = {}
    exec(python_of("docs/privacy.md")[0], names)

    names["test_no_password_leaves"](guard_events)

    assert len(guard_events) == 1


def test_the_agent_of_the_former_name_is_made():
    names = run(python_of("packaging/fastapi-guard-agent/README.md")[0], {})

    assert names["agent"].config.project_id == "your-project-id"


def test_the_plugin_of_the_contributors_has_the_right_form():
    module = types.ModuleType("guard_agent_x")
    exec(python_of("CONTRIBUTING.md")[0], module.__dict__)

    (cls,) = module.guard_agent_transports()
    assert check_class(cls, TRANSPORT, "x", "guard-agent-x") == []


def test_the_client_for_other_plugins_asks(collector):
    source = python_of("plugins/guard-agent-http/README.md")[1]
    from guard_agent_http import Answer, CollectorClient

    names = {"CollectorClient": CollectorClient, "key": "test-key-0123"}
    answer = run(source.replace("https://collector.example.com", collector.url), names)["answer"]

    assert isinstance(answer, Answer)
    assert answer.status == 204, "this collector has no rules"


# --- the smallest plugins, with the suites as the pages say ---------------------------------------


def plugin_and_suite(page: str) -> type:
    """The class of tests on a page, for the plugin on it."""
    plugin, *_, suite = python_of(f"docs/write/{page}.md")
    (name,) = re.findall(r"^from (guard_agent_my_\w+) import", suite, re.MULTILINE)
    module = types.ModuleType(name)
    names: dict = {"__name__": __name__}
    with known_as(name, module):
        exec(plugin, module.__dict__)
        exec(suite, names)
    (tests,) = (value for key, value in names.items() if key.startswith("Test"))
    tests.module = module
    return tests


TestSmallestTransport = plugin_and_suite("transport")
TestSmallestRules = plugin_and_suite("rules")
TestSmallestEnricher = plugin_and_suite("enricher")
TestSmallestAggregator = plugin_and_suite("aggregator")
TestSmallestStore = plugin_and_suite("store")
TestSmallestStore.states = hypothesis_settings(STATES, max_examples=10)


@pytest.mark.parametrize("kind", ["event", "metric"])
async def test_the_quick_enricher_says_the_same_in_both_forms(kind, tmp_path):
    class Suite(EnricherContract):
        plugin = run(python_of("docs/write/enricher.md")[1], {})["HideDomain"]

    suite = Suite()
    suite.folder = tmp_path
    await suite.test_its_text_rules_say_the_same_as_the_function(kind)
