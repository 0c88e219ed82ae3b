"""
What the agent asks of a Guard engine in its process.

The engine keeps one manager for the life of a process; those here have its shape and stand where it
is looked for. `test_rules.py` and the tests end to end have the real one.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest

from guard_agent.core.rules import engine_link
from guard_agent.core.rules.engine_link import trusted_proxies, update_rule_managers

ASYNC = "guard_core.handlers.dynamic_rule_handler"
SYNC = "guard_core.sync.handlers.dynamic_rule_handler"


@pytest.fixture
def engine(monkeypatch):
    """Put a manager in the place of that of a module: ``engine(ASYNC, manager)``."""
    for name in (ASYNC, SYNC):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def put(name, manager):
        module = ModuleType(name)
        module.DynamicRuleManager = SimpleNamespace(_instance=manager)
        monkeypatch.setitem(sys.modules, name, module)

    return put


class AsyncManager:
    def __init__(self, task):
        self.update_task = task
        self.loops = []
        self.updated = asyncio.Event()

    async def force_update(self):
        self.loops.append(asyncio.get_running_loop())
        self.updated.set()


class SyncManager:
    def __init__(self, thread):
        self.update_task = thread
        self.threads = []
        self.updated = threading.Event()

    def force_update(self):
        self.threads.append(threading.current_thread())
        self.updated.set()


@pytest.fixture
def poller():
    """A thread that is alive, as the one in which the engine polls."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait, args=(60,), daemon=True)
    thread.start()
    yield thread
    over.set()
    thread.join(20)


async def test_the_manager_of_an_app_with_a_loop_updates_on_that_loop(engine):
    task = asyncio.ensure_future(asyncio.Event().wait())
    manager = AsyncManager(task)
    engine(ASYNC, manager)

    await asyncio.to_thread(update_rule_managers)
    await asyncio.wait_for(manager.updated.wait(), 20)

    assert manager.loops == [asyncio.get_running_loop()]
    while engine_link._updates:
        await asyncio.sleep(0)
    task.cancel()


async def test_a_manager_that_does_not_poll_any_more_is_left_alone(engine):
    task = asyncio.ensure_future(asyncio.sleep(0))
    await task
    thread = threading.Thread(target=int)
    done, idle = AsyncManager(task), SyncManager(thread)
    engine(ASYNC, done)
    engine(SYNC, idle)

    update_rule_managers()
    thread.start()
    thread.join()
    update_rule_managers()
    await asyncio.sleep(0.01)

    assert done.loops == idle.threads == []


def test_the_manager_of_an_app_without_a_loop_updates_in_a_thread_of_its_own(engine, poller):
    manager = SyncManager(poller)
    engine(SYNC, manager)

    update_rule_managers()
    assert manager.updated.wait(20)

    (thread,) = manager.threads
    assert thread is not threading.current_thread()
    assert (thread.name, thread.daemon) == ("guard-agent-rules", True)


def test_an_engine_of_another_shape_is_left_alone(engine, poller, caplog):
    caplog.set_level("DEBUG", "guard_agent.rules")
    update_rule_managers()
    for manager in (None, object(), SimpleNamespace(update_task="task")):
        engine(ASYNC, manager)
        engine(SYNC, manager)
        update_rule_managers()
    sys.modules[ASYNC].DynamicRuleManager = None
    update_rule_managers()
    assert caplog.text == ""

    engine(SYNC, SimpleNamespace(update_task=poller))  # without `force_update`
    update_rule_managers()
    assert "could not ask the engine to update" in caplog.text


@pytest.mark.parametrize(
    "silent", [object(), SimpleNamespace(config=SimpleNamespace())], ids=["a", "b"]
)
def test_a_manager_that_names_no_proxies_does_not_hide_those_of_another(engine, silent):
    engine(ASYNC, silent)
    engine(SYNC, SimpleNamespace(config=SimpleNamespace(trusted_proxies=["192.0.2.1"])))

    assert trusted_proxies() == ["192.0.2.1"]


def test_the_proxies_of_all_managers_are_trusted(engine):
    def manager(*proxies):
        return SimpleNamespace(config=SimpleNamespace(trusted_proxies=list(proxies)))

    assert trusted_proxies() == []
    engine(ASYNC, manager("192.0.2.1", "192.0.2.2"))
    assert trusted_proxies() == ["192.0.2.1", "192.0.2.2"]
    engine(SYNC, manager("198.51.100.0/24", 7))
    assert trusted_proxies() == ["192.0.2.1", "192.0.2.2", "198.51.100.0/24", "7"]
    engine(ASYNC, None)
    assert trusted_proxies() == ["198.51.100.0/24", "7"]


@pytest.mark.parametrize(
    "manager",
    [
        object(),
        SimpleNamespace(config=None),
        SimpleNamespace(config=SimpleNamespace()),
        SimpleNamespace(config=SimpleNamespace(trusted_proxies=None)),
        SimpleNamespace(config=SimpleNamespace(trusted_proxies=3)),
    ],
    ids=range(5),
)
def test_an_engine_that_names_no_proxies_has_none(engine, manager):
    engine(ASYNC, manager)

    assert trusted_proxies() == []
