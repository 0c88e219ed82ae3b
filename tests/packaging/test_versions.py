"""
The distributions of the repository agree with each other and with the naming rule.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import guard_agent
from guard_agent.cli.commands.doctor import _FIRST_PARTY

HOOKS = (
    "guard_agent_transports",
    "guard_agent_buffer_stores",
    "guard_agent_rule_sources",
    "guard_agent_enrichers",
    "guard_agent_aggregators",
)


def ours(requirement):
    return canonicalize_name(requirement.name).startswith("guard-agent")


def offered(module):
    """Names of the plugin classes a module hands over through its hooks."""
    hooks = [getattr(module, hook) for hook in HOOKS if hasattr(module, hook)]
    return {cls.name for hook in hooks for cls in hook()}


def test_all_versions_are_the_version_of_the_core(distributions):
    versions = {name: found.project["version"] for name, found in distributions.items()}

    assert versions == dict.fromkeys(distributions, guard_agent.__version__)


def test_the_changelog_ends_with_this_version(root):
    """The newest version in the changelog is the one that is built."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")

    released = re.findall(r"^## \[?(\d[^\]\s]*)", text, flags=re.MULTILINE)

    assert released[0] == guard_agent.__version__


def test_all_promise_the_same_pythons(distributions):
    floors = {name: found.project["requires-python"] for name, found in distributions.items()}

    assert floors == dict.fromkeys(distributions, ">=3.10")


def test_all_carry_the_license(distributions, root):
    """A file outside its folder cannot be put into a wheel, so each has its own copy."""
    text = (root / "LICENSE").read_text(encoding="utf-8")

    files = {name: found.folder / "LICENSE" for name, found in distributions.items()}
    without = [
        name
        for name, file in files.items()
        if not file.is_file() or file.read_text(encoding="utf-8") != text
    ]

    assert without == []
    assert {found.project["license"] for found in distributions.values()} == {"MIT"}


def test_the_plugins_the_core_depends_on_are_here(distributions, plugins):
    needed = {"guard-agent-http", "guard-agent-redaction", "guard-agent-polling"}

    assert needed <= plugins.keys()
    assert needed <= distributions["guard-agent"].requires()


def test_a_plugin_is_one_word_everywhere(plugins):
    """
    Plugin x: distribution guard-agent-x, module guard_agent_x in src, entry point x, which is a
    plugin or a command.
    """
    assert plugins
    for name, plugin in plugins.items():
        word = name.removeprefix("guard-agent-")
        packages = sorted(path.name for path in (plugin.folder / "src").iterdir() if path.is_dir())

        assert re.fullmatch(r"[a-z]+", word), name
        assert plugin.folder.name == name
        assert [package for package in packages if package != "__pycache__"] == [plugin.module]
        assert (plugin.folder / "src" / plugin.module / "__init__.py").is_file(), name
        points = plugin.entry_points or plugin.commands
        assert points.keys() == {word}, name
        assert re.split(r"[.:]", points[word])[0] == plugin.module, name


def test_a_plugin_answers_to_the_name_of_its_entry_point(distributions):
    named = {
        point: offered(EntryPoint(point, target, "guard_agent").load())
        for found in distributions.values()
        for point, target in found.entry_points.items()
    }

    assert named
    assert named == {point: {point} for point in named}


def test_every_typed_package_says_so(distributions, root):
    for name, found in distributions.items():
        if found.module is not None:
            base = root if found.folder == root else found.folder / "src"
            assert (base / found.module / "py.typed").is_file(), name


def test_the_distributions_ask_for_each_other_from_4_on(distributions):
    """
    The index holds an older guard-agent that shares only the name; the floor keeps it out.
    """
    asked = {
        (name, str(requirement.name)): requirement.specifier
        for name, found in distributions.items()
        for requirement in found.requirements
        if ours(requirement)
    }

    assert len(asked) >= len(distributions)
    assert asked == dict.fromkeys(asked, SpecifierSet(">=4.0.0.dev0,<5"))


def test_the_doctor_compares_the_versions_of_all_that_are_here(plugins):
    assert set(_FIRST_PARTY) == plugins.keys()


def test_every_plugin_asks_for_the_core(plugins):
    assert {name for name, plugin in plugins.items() if "guard-agent" in plugin.requires()} == set(
        plugins
    )


def test_the_former_name_brings_what_the_core_brings(distributions):
    alias = distributions["fastapi-guard-agent"]

    assert alias.requires() == {
        "guard-agent",
        "guard-agent-http",
        "guard-agent-redaction",
        "guard-agent-polling",
    }
    assert alias.requires("redis") == {"guard-agent-redis"}
    assert distributions["guard-agent"].requires("redis") == {"guard-agent-redis"}


def test_constraints_are_versions_of_names_and_nothing_else(root):
    """No addresses, no options, no ranges: it must work with any index."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()

    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]

    assert pins
    assert [str(pin) for pin in pins if pin.url or pin.extras] == []
    assert [
        str(pin)
        for pin in pins
        if not re.fullmatch(r"==[0-9.]+(a[0-9]+|\.post[0-9]+)?", str(pin.specifier))
    ] == []


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_dependency_is_pinned_once(distributions, root, python):
    """What a distribution names, ``make venv`` installs in one known version."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = {"python_version": python, "extra": ""}
    pinned = [
        canonicalize_name(pin.name)
        for pin in pins
        if pin.marker is None or pin.marker.evaluate(here)
    ]
    named = {
        canonicalize_name(requirement.name)
        for found in distributions.values()
        for requirement in found.requirements
        if not ours(requirement)
        and (requirement.marker is None or requirement.marker.evaluate(here))
    }

    assert len(pinned) == len(set(pinned))
    assert named - set(pinned) == set()


@pytest.fixture(scope="module")
def committed(root):
    """Text of every file that is, or would be, committed; by its path in the repository."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
    ).stdout
    paths = [root / os.fsdecode(name) for name in listing.split(b"\0") if name]
    return {
        str(path.relative_to(root)): path.read_text(encoding="utf-8", errors="replace")
        for path in paths
        if path.is_file()
    }


def test_no_committed_file_names_a_package_registry(committed):
    hosts = [
        "{}.{}".format(*parts)
        for parts in [
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("npmjs", "org"),
            ("npmjs", "com"),
            ("deb.debian", "org"),
        ]
    ]
    assert "constraints.txt" in committed

    naming = [
        (path, host) for path, text in committed.items() for host in hosts if host in text.lower()
    ]

    assert naming == []


def test_no_committed_file_names_a_place_on_this_machine(committed, root):
    places = {str(root), str(root.parent / "shared"), sys.prefix, sys.base_prefix}
    # "/usr" and the like are no secret, and every other test names them.
    places = {place for place in places if len(Path(place).parts) >= 3 and place[:5] != "/usr/"}

    naming = [
        (path, place) for path, text in committed.items() for place in places if place in text
    ]

    assert naming == []


def test_no_lock_file_is_committed(committed):
    """A lock file embeds the addresses of the index it was made with."""
    names = {Path(path).name for path in committed}

    assert names & {"uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "package-lock.json"} == (
        set()
    )
