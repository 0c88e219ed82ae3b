"""
A pytest plugin for what mutmut does not do with tests.

It takes the ids of tests as they are: mutmut passes them as arguments, and pytest takes each apart
at every ``::``. That does not find tests whose parameters hold one, such as an IPv6 address, and is
slow for hundreds of them.

And while mutmut notes which test reaches which function, it adds what is reached in other processes
that the test starts or forks; see `sitecustomize`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sitecustomize
from mutmut.state import state

if TYPE_CHECKING:
    from collections.abc import Generator

_WANTED = pytest.StashKey[set[str]]()
_HITS = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    wanted = {argument for argument in config.args if "::" in argument}
    if wanted and len(wanted) == len(config.args):
        config.stash[_WANTED] = set(map(_plain, wanted))
        config.args = sorted({argument.partition("::")[0] for argument in wanted})


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    if (wanted := config.stash.get(_WANTED, None)) is not None:
        unwanted = [item for item in items if _plain(item.nodeid) not in wanted]
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if _plain(item.nodeid) in wanted]
    yield


def _plain(test: str) -> str:
    """The id of a test without backslashes: pytest doubles them each time that it collects."""
    return test.replace("\\", "")


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main() -> Generator[None, object, object]:
    try:
        return (yield)
    except Exception as error:
        # A thread that died unseen until all tests were over: raised then, and noticed.
        if isinstance(error, Warning) or hasattr(error, "exceptions"):
            return pytest.ExitCode.TESTS_FAILED
        raise


def pytest_sessionstart(session: pytest.Session) -> None:
    if os.environ.get("MUTANT_UNDER_TEST") == "stats":
        descriptor, path = tempfile.mkstemp(prefix="mutation-hits-")
        os.close(descriptor)
        os.environ["MUTATION_HITS"] = path
        session.stash[_HITS] = Path(path)
        os.register_at_fork(after_in_child=sitecustomize.write_down)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (hits := session.stash.get(_HITS, None)) is not None:
        del os.environ["MUTATION_HITS"]
        hits.unlink()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    if (hits := item.session.stash.get(_HITS, None)) is not None:
        state()._stats |= set(hits.read_text(encoding="utf-8").split())
        hits.write_text("")
    return (yield)
