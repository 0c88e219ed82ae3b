"""
Importing the package costs an application little and changes nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ["aiohttp", "click", "redis", "yaml", "importlib_metadata", "cryptography"]

PROBE = """
import json, sys, threading
before = set(sys.modules)
import guard_agent
print(json.dumps({
    "modules": sorted(set(sys.modules) - before),
    "threads": [thread.name for thread in threading.enumerate()],
}))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What ``import guard_agent`` does in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE],
        cwd=tmp_path_factory.mktemp("import"),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_importing_stays_light(imported):
    """What only a plugin or the command needs is imported with the plugin or the command."""
    roots = {name.split(".")[0] for name in imported["modules"]}

    assert "guard_agent" in roots
    assert roots.intersection(HEAVY) == set()


def test_importing_imports_no_plugin(imported):
    plugins = [
        name
        for name in imported["modules"]
        if name.startswith(("guard_agent.plugins.", "guard_agent.testing", "guard_agent_"))
    ]

    assert plugins == []


def test_importing_imports_no_framework(imported):
    """An app that uses Flask does not pay for Django, nor one that uses neither for both."""
    roots = {name.split(".")[0] for name in imported["modules"]}

    assert roots.isdisjoint({"django", "fastapi", "flask", "starlette", "tornado"})
    assert not [name for name in imported["modules"] if name.startswith("guard_agent.integrations")]


def test_importing_starts_no_thread(imported):
    assert imported["threads"] == ["MainThread"]
