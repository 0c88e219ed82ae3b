"""What tests of several folders share."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guard_agent import client
from guard_agent.testing.collector import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

# Test modules are not importable by name, so that no two of them can be mixed up.
_FIXTURE_WHEELS = runpy.run_path(str(Path(__file__).parent / "core" / "fixture_wheels.py"))
_PACKAGES = (_FIXTURE_WHEELS["PACKAGE"], _FIXTURE_WHEELS["OTHER_PACKAGE"])


# Begun first: with several processes, one that began at the end would be waited for alone.
_LONGEST = {
    "test_agent_sweep.py",
    "test_adapters.py",
    "test_wheels.py",
    "test_new.py",
    "test_fastapi.py",
    "test_page.py",
    "test_flood.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home, a state and a working folder of its own, and an agent that no test leaves behind."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("GUARD_AGENT_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    _forget_agent()
    yield
    _forget_agent()


def _forget_agent() -> None:
    """As in a process that has made none."""
    if client._process.agent is not None:
        client._process.agent.stop().result(30)
    client._process.agent = None


@pytest.fixture(scope="session")
def fixture_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the distributions of ``fixture_wheels.py``."""
    return _FIXTURE_WHEELS["install"](tmp_path_factory.mktemp("wheels"))


@pytest.fixture
def installed(fixture_site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The fixture distributions are on ``sys.path``, and nothing of them is imported yet."""
    monkeypatch.syspath_prepend(fixture_site)
    importlib.invalidate_caches()
    _forget()
    yield
    _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in _PACKAGES]:
        del sys.modules[name]
