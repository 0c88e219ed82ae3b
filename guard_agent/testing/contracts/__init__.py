"""
Contract suites: what every implementation of a seam must pass, as pytest classes to subclass.

They need pytest and pytest-asyncio (``pip install guard-agent[testing]``).
"""

from __future__ import annotations

import pytest

# Before the import: only then do failing assertions show their values.
pytest.register_assert_rewrite(
    "guard_agent.testing.contracts.buffer_store", "guard_agent.testing.contracts.state_machine"
)

from guard_agent.testing.contracts.buffer_store import BufferStoreContract  # noqa: E402

__all__ = ["CONTRACT_VERSION", "BufferStoreContract"]

CONTRACT_VERSION = 1
"""Grows when a suite starts to ask for more than before."""
