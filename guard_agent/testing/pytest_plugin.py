"""
Fixtures for pytest.

Switched on with ``pytest_plugins = ["guard_agent.testing.pytest_plugin"]`` in the ``conftest.py``
at the root of the tests, or in a test module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guard_agent.testing.collector import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def guard_collector() -> Iterator[Collector]:
    """A collector that listens on a free port of loopback while the test runs."""
    with Collector() as collector:
        yield collector
