"""
A pytest plugin that takes the ids of tests as they are.

mutmut passes the ids of tests as arguments, and pytest takes each apart at every ``::``. That does
not find tests whose parameters hold one, such as an IPv6 address, and is slow for hundreds of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

_WANTED = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    wanted = {argument for argument in config.args if "::" in argument}
    if wanted and len(wanted) == len(config.args):
        config.stash[_WANTED] = wanted
        config.args = sorted({argument.partition("::")[0] for argument in wanted})


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    if (wanted := config.stash.get(_WANTED, None)) is not None:
        unwanted = [item for item in items if item.nodeid not in wanted]
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item.nodeid in wanted]
    yield
