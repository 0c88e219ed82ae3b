"""
What the agent has to do with the Guard engine, when that runs in this process: it is asked to take
new rules at once, and which proxies it trusts.

The engine polls its agent once a minute at best. Its rule manager is found where the engine keeps
it; an engine without one, or with another shape, simply goes on polling.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from typing import Any

logger = logging.getLogger("guard_agent.rules")

_ASYNC_MODULE = "guard_core.handlers.dynamic_rule_handler"
_SYNC_MODULE = "guard_core.sync.handlers.dynamic_rule_handler"
_MODULES = (_ASYNC_MODULE, _SYNC_MODULE)


def update_rule_managers() -> None:
    """Have every rule manager of the engine fetch the rules now. Never raises, never waits."""
    try:
        manager = _manager(_ASYNC_MODULE)
        task = getattr(manager, "update_task", None)
        if isinstance(task, asyncio.Task) and not task.done():
            # On the loop of the host application, where the manager lives.
            loop = task.get_loop()
            loop.call_soon_threadsafe(_begin, loop, manager)
        manager = _manager(_SYNC_MODULE)
        thread = getattr(manager, "update_task", None)
        if isinstance(thread, threading.Thread) and thread.is_alive():
            threading.Thread(
                target=manager.force_update, name="guard-agent-rules", daemon=True
            ).start()
    except Exception:
        logger.debug("could not ask the engine to update its rules", exc_info=True)


def trusted_proxies() -> list[str]:
    """The proxies that the engine was told to trust; empty without an engine. Never raises."""
    try:
        managers = [manager for name in _MODULES if (manager := _manager(name)) is not None]
        return [
            str(proxy)
            for manager in managers
            for proxy in getattr(getattr(manager, "config", None), "trusted_proxies", None) or ()
        ]
    except Exception:
        logger.debug("could not ask the engine for its proxies", exc_info=True)
        return []


def _manager(module: str) -> Any:
    return getattr(getattr(sys.modules.get(module), "DynamicRuleManager", None), "_instance", None)


_updates: set[asyncio.Task[Any]] = set()


def _begin(loop: asyncio.AbstractEventLoop, manager: Any) -> None:
    update = loop.create_task(manager.force_update())
    _updates.add(update)
    update.add_done_callback(_updates.discard)
