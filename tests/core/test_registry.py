"""Plugins are found through entry points of real, installed distributions."""

from __future__ import annotations

import inspect
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import guard_agent
from guard_agent import Accepted, Transport, hookimpl
from guard_agent.core.assembly.codes import CODES
from guard_agent.core.assembly.inspection import SEAMS
from guard_agent.core.assembly.registry import Registry

pytestmark = pytest.mark.usefixtures("installed")

ACME = "acme-guard-fixtures"


def load(name):
    return Registry.from_environment().load(name)


def only_problem(name):
    """The one problem of a plugin, whose message has to say what and where."""
    (problem,) = load(name).problems
    if problem.code not in ("GA101", "GA102"):
        assert f"{ACME} 1.2.3" in problem.message
    assert problem.fix
    assert "\n" not in problem.message + problem.fix
    return problem


# --- finding --------------------------------------------------------------------------------------


def test_providers_carry_distribution_and_version():
    found = {p.name: p for p in Registry.from_environment().providers if p.distribution == ACME}

    assert found["acme-tcp"].version == "1.2.3"
    assert found["acme-tcp"].value == "acme_guard_fixtures.acme_tcp"
    assert str(found["acme-tcp"]) == (
        "plugin 'acme-tcp' of acme-guard-fixtures 1.2.3 "
        "(entry point acme-tcp = acme_guard_fixtures.acme_tcp)"
    )


def test_finding_imports_nothing():
    Registry.from_environment()

    assert not [name for name in sys.modules if name.startswith("acme_guard_fixtures")]


def test_loading_imports_only_what_is_named():
    """
    Installed is not active.
    """
    loaded = load("acme-tcp")

    assert loaded.classes["transport"].__module__ == "acme_guard_fixtures.acme_tcp"
    assert "acme_guard_fixtures.acme_tcp" in sys.modules
    assert "acme_guard_fixtures.acme_lazy" not in sys.modules


def test_importing_the_package_neither_finds_nor_imports_plugins():
    code = (
        "import sys, guard_agent; "
        "print([m for m in ('importlib_metadata', 'yaml', 'click', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.strip() == "[]"


def test_a_distribution_found_twice_is_one_provider(tmp_path, fixture_site, monkeypatch):
    """
    An editable install next to an old copy must not look like two owners of one name.
    """
    copy = tmp_path / "acme_guard_fixtures-1.0.dist-info"
    copy.mkdir()
    original = fixture_site / "acme_guard_fixtures-1.2.3.dist-info"
    for name in ("METADATA", "entry_points.txt"):
        text = (original / name).read_text().replace("1.2.3", "1.0")
        (copy / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    assert [p.version for p in Registry.from_environment().providers if p.name == "acme-tcp"] == [
        "1.0"
    ]
    assert load("acme-tcp").problems == ()


def test_loading_twice_asks_once():
    registry = Registry.from_environment()

    assert registry.load("acme-tcp") is registry.load("acme-tcp")


def test_a_plugin_can_be_registered_in_code():
    class Local(Transport):
        name = "local"

        async def send(self, batch):
            return Accepted()

    class LocalPlugin:
        @hookimpl
        def guard_agent_transports(self):
            return [Local]

    registry = Registry()
    registry.register(LocalPlugin(), name="local")

    loaded = registry.load("local")
    assert loaded.classes == {"transport": Local}
    assert loaded.problems == ()
    assert loaded.provider.label == "(in code)"


def test_registering_forgets_what_was_loaded_before():
    registry = Registry.from_environment()
    registry.load("acme-tcp")

    registry.register(SimpleNamespace(), name="acme-tcp")

    assert [p.code for p in registry.load("acme-tcp").problems] == ["GA102"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("acme-tcp", "transport"),
        ("acme-store", "store"),
        ("acme-rules", "rule source"),
        ("acme-redact", "enricher"),
    ],
)
def test_every_kind_loads(name, kind):
    loaded = load(name)

    assert (list(loaded.classes), loaded.problems) == ([kind], ())


def test_a_broken_hook_leaves_the_other_hooks_of_the_plugin_alone():
    loaded = load("acme-half")

    assert list(loaded.classes) == ["transport"]
    assert [p.code for p in loaded.problems] == ["GA107"]


# --- one code after the other ---------------------------------------------------------------------


def test_ga101_unknown_name_suggests_a_similar_one():
    problem = only_problem("acme-tpc")

    assert (problem.code, problem.fatal) == ("GA101", True)
    assert "no plugin 'acme-tpc' is installed; did you mean 'acme-tcp'?" in problem.message
    assert "write 'acme-tcp'" in problem.fix


def test_ga101_unknown_name_without_a_similar_one_suggests_a_distribution():
    problem = only_problem("zookeeper")

    assert problem.code == "GA101"
    assert "acme-tcp" in problem.message
    assert "pip install guard-agent-zookeeper" in problem.fix


def test_ga101_says_so_when_the_built_in_plugins_are_missing_too():
    (problem,) = Registry().load("zookeeper").problems

    assert "in a checkout install it first" in problem.fix


@pytest.mark.parametrize("name", ["", "http/", "../evil", "a b", "--index-url=x"])
def test_ga101_never_suggests_to_install_what_is_no_name(name):
    problem = only_problem(name)

    assert problem.code == "GA101"
    assert "pip install guard-agent-" not in problem.fix


def test_ga102_two_distributions_of_one_name():
    """
    Neither is imported: the second may be there to be taken for the first.
    """
    problem = only_problem("acme-twice")

    assert (problem.code, problem.fatal) == ("GA102", True)
    assert "acme-guard-fixtures 1.2.3" in problem.message
    assert "other-guard-fixtures 0.9" in problem.message
    assert "uninstall" in problem.fix
    assert not [name for name in sys.modules if name.endswith(".acme_twice")]


def test_ga102_two_classes_of_one_kind():
    loaded = load("acme-two-classes")

    assert [p.code for p in loaded.problems] == ["GA102"]
    assert list(loaded.classes) == ["transport"]


def test_ga103_missing_module_is_named():
    problem = only_problem("acme-missing-module")

    assert (problem.code, problem.fatal) == ("GA103", False)
    assert "ModuleNotFoundError: No module named 'acme_no_such_module'" in problem.message
    assert re.search(r"acme_missing_module\.py, line \d+\)", problem.message)
    assert "install what provides the module 'acme_no_such_module'" in problem.fix


def test_ga103_exception_stands_on_one_line_and_its_traceback_in_the_debug_log(caplog):
    caplog.set_level(logging.DEBUG, logger="guard_agent.registry")

    problem = only_problem("acme-raises")

    assert problem.code == "GA103"
    assert r"RuntimeError: first line\x0asecond line" in problem.message
    assert ACME in problem.fix
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.exc_info[0] is RuntimeError


def test_ga103_a_plugin_cannot_end_the_program():
    problem = only_problem("acme-exits")

    assert problem.code == "GA103"
    assert "SystemExit: 3" in problem.message


def test_ga103_entry_point_that_refers_to_nothing():
    assert only_problem("acme-junk-value").code == "GA103"


def test_keyboard_interrupt_is_the_users():
    class Impatient:
        @hookimpl
        def guard_agent_transports(self):
            raise KeyboardInterrupt

    registry = Registry()
    registry.register(Impatient(), name="impatient")

    with pytest.raises(KeyboardInterrupt):
        registry.load("impatient")


def test_ga104_misspelt_hook():
    problem = only_problem("acme-misspelt")

    assert problem.code == "GA104"
    assert "guard_agent_transport " in problem.message
    assert "did you mean 'guard_agent_transports'?" in problem.message
    assert problem.fix == "rename it to guard_agent_transports"


def test_ga105_undecorated_hook():
    problem = only_problem("acme-undecorated")

    assert problem.code == "GA105"
    assert "guard_agent_transports" in problem.message
    assert "@hookimpl" in problem.fix


@pytest.mark.parametrize(
    ("name", "what"),
    [("acme-hook-args", "takes arguments (config)"), ("acme-hook-async", "'async def'")],
)
def test_ga106_hook_of_the_wrong_form(name, what):
    problem = only_problem(name)

    assert problem.code == "GA106"
    assert what in problem.message
    assert "def guard_agent_transports(): return [MyClass]" in problem.fix


@pytest.mark.parametrize(
    ("name", "what"),
    [("acme-hook-raises", "KeyError: 'transports'"), ("acme-hook-exits", "SystemExit: 4")],
)
def test_ga107_hook_that_raises(name, what):
    problem = only_problem(name)

    assert problem.code == "GA107"
    assert "in its hook guard_agent_transports" in problem.message
    assert what in problem.message
    assert "open()" in problem.fix


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("acme-hook-none", "returned NoneType"),
        ("acme-hook-number", "returned int"),
        ("acme-hook-single", "returned the class T"),
        ("acme-hook-instance", "returned an instance of T"),
        ("acme-hook-wrong-kind", "returned T from guard_agent_enrichers, which is no Enricher"),
    ],
)
def test_ga108_hook_that_returns_something_else(name, what):
    problem = only_problem(name)

    assert problem.code == "GA108"
    assert what in problem.message
    assert "return [MyClass]" in problem.fix


def test_ga108_endless_hook_ends():
    problems = load("acme-hook-endless").problems

    assert {p.code for p in problems} == {"GA108"}
    assert "an object of type str" in problems[0].message


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("acme-wrong-name", "has the name 'something-else'", "name = 'acme-wrong-name'"),
        ("acme-no-name", "has no attribute 'name'", "name = 'acme-no-name'"),
        ("acme-no-stage", "at which stage", "stage = Stage.DERIVE"),
    ],
)
def test_ga109_class_attribute(name, what, fix):
    problem = only_problem(name)

    assert problem.code == "GA109"
    assert what in problem.message
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("acme-sync-send", "send is not 'async def'", "async def send"),
        ("acme-async-bind", "bind is 'async def'", "def bind without async"),
        ("acme-yielding-send", "send contains 'yield'", "once"),
    ],
)
def test_ga110_async_or_not(name, what, fix):
    problem = only_problem(name)

    assert problem.code == "GA110"
    assert what in problem.message
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("acme-no-send", "does not define send", "define async def send(self, batch)"),
        ("acme-send-signature", "argument: 'deadline'", "define it as async def send(self, batch)"),
        ("acme-append-signature", "'evict'", "async def append(self, records, *, evict)"),
        ("acme-release-signature", "'delay'", "async def release(self, lease, ids, delay=0.0)"),
        ("acme-init-signature", "__init__", "def __init__(self, settings, context)"),
        ("acme-interval-method", "interval is a method", "@property"),
    ],
)
def test_ga111_methods_that_do_not_fit(name, what, fix):
    problem = only_problem(name)

    assert problem.code == "GA111"
    assert what in problem.message
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("acme-settings-type", "not a subclass of PluginSettings"),
        ("acme-settings-loose", "take unknown settings"),
    ],
)
def test_ga113_settings_class(name, what):
    problem = only_problem(name)

    assert problem.code == "GA113"
    assert what in problem.message


def test_ga114_module_without_hooks():
    problem = only_problem("acme-no-hooks")

    assert problem.code == "GA114"
    assert "has no hook" in problem.message
    assert "guard_agent_transports" in problem.fix


def test_ga114_entry_point_that_refers_to_the_class():
    problem = only_problem("acme-class")

    assert problem.code == "GA114"
    assert "refers to the class T itself" in problem.message
    assert "module" in problem.fix


# --- signatures that are fine ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "async def send(self, payload): return Accepted()",
        "async def send(self, batch, timeout=3): return Accepted()",
        "async def send(self, *args, **kwargs): return Accepted()",
        "@staticmethod\n    async def send(batch): return Accepted()",
        "async def send(self, batch): return Accepted()\n    collector = 'one'",
    ],
)
def test_whatever_takes_the_call_is_accepted(body):
    namespace = {}
    source = f"class T(Transport):\n    name = 't'\n    {body}\n"
    exec(source, vars(guard_agent).copy(), namespace)
    plugin = SimpleNamespace(guard_agent_transports=hookimpl(lambda: [namespace["T"]]))
    registry = Registry()
    registry.register(plugin, name="t")

    assert registry.load("t").problems == ()


# --- the table of codes ---------------------------------------------------------------------------


def test_every_code_in_use_is_explained_and_every_explained_code_is_in_use():
    folder = Path(inspect.getfile(guard_agent)).parent / "core"
    used = {
        code
        for path in folder.rglob("*.py")
        if path.name != "codes.py"
        for code in re.findall(r'"(GA\d{3})"', path.read_text())
    }

    assert used == set(CODES)


def test_the_hooks_that_a_code_lists_are_all_there_are():
    assert set(re.findall(r"guard_agent_\w+", CODES["GA104"].fix)) == {seam.hook for seam in SEAMS}
