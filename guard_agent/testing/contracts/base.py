"""What the contract suites of all five kinds have in common."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias
from uuid import uuid4

import pytest
from pydantic import ValidationError

from guard_agent import AgentConfig, __version__
from guard_agent.core.assembly.composition import compose
from guard_agent.core.assembly.inspection import AGGREGATOR, STORE, Seam, check_class
from guard_agent.core.assembly.registry import Registry
from guard_agent.testing.records import make_context
from guard_agent.testing.registry import isolated_registry

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path
    from types import ModuleType

    from guard_agent import PluginContext
    from guard_agent.core.assembly.plan import Plan
    from guard_agent.core.interfaces import Plugin, Resource
    from guard_agent.testing.peers import AnsweringPeer

    # What a plugin class and its instances are: each suite knows more than can be said here.
    AnyPlugin: TypeAlias = Any

CONTRACT_VERSION = 1
"""
The version of the five suites, and of the seams that they are for.

It grows when a suite begins to ask for more than before, so that a plugin that passed may fail.
A new test for what the docstrings of `guard_agent.core.interfaces` said all along does not change
it; see ``contract_version`` of `Contract`.
"""

PATIENCE = 30.0
"""Seconds to wait for what must happen; nothing should ever take that long."""

_BLOCKING = ("open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "time.sleep")
"""Audit events of what may block; `sys.audit` tells of ``time.sleep`` from Python 3.11 on."""


class Contract:
    """
    Base of all suites.

    Each coroutine function whose name begins with ``test_`` is run by pytest-asyncio, in whichever
    mode that is.
    """

    contract_version: ClassVar[int] = 1
    """
    The version that your plugin needs. When guard-agent has an older one, the suite says so instead
    of failing test by test. A plugin class may have such an attribute too.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, function in list(vars(cls).items()):
            if name.startswith("test_") and inspect.iscoroutinefunction(function):
                setattr(cls, name, pytest.mark.asyncio(function))
        plugin = getattr(cls, "plugin", None)
        wanted = max(cls.contract_version, getattr(plugin, "contract_version", 1))
        if wanted > CONTRACT_VERSION:
            pytest.fail(
                f"{cls.__qualname__} needs version {wanted} of the contract suites, and "
                f"guard-agent {__version__} has version {CONTRACT_VERSION}: upgrade it "
                "(pip install --upgrade guard-agent), or take the plugin of that time",
                pytrace=False,
            )


class PluginContract(Contract):
    """What must hold for a plugin of any kind."""

    plugin: ClassVar[AnyPlugin]
    """The class under test."""
    module: ClassVar[ModuleType | None] = None
    """What the entry point names. None: the module of the class, or the nearest package above it
    that has a hook."""

    seam: ClassVar[Seam]

    folder: Path
    """A folder of its own for each test."""

    def settings(self) -> dict[str, Any]:
        """The settings of the plugin, as they would stand in a configuration file."""
        return {}

    def config(self) -> dict[str, Any]:
        """Fields of `AgentConfig` that the plugin needs."""
        return {}

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = tmp_path
        # Nothing of the person who runs the tests: no state, no configuration.
        monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
        monkeypatch.delenv("GUARD_AGENT_CONFIG", raising=False)

    def context(self, **config: Any) -> PluginContext:
        """What the agent would tell the plugin; ``config`` are fields of `AgentConfig`."""
        name = self.plugin.name
        fields = {"project_id": f"contract-{uuid4().hex}", **self.config(), **config}
        return make_context(self.folder / "state", instance=name, destinations=(name,), **fields)

    def make(self) -> AnyPlugin:
        """An instance that is not open, as the agent makes it."""
        return self.plugin(self.plugin.Settings.model_validate(self.settings()), self.context())

    def compose(self, *others: type[Plugin], **config: Any) -> Plan:
        """
        The plan of an agent with this plugin and ``others``, and nothing from outside.

        ``config`` are fields of `AgentConfig` that go before those of `config`.
        """
        fields = {
            "api_key": "test-key-0123456789",
            "project_id": f"contract-{uuid4().hex}",
            "enrichers": [],
            "rules": [],
            "rollup": False,
            "transports": ["console"],
            "allow_unredacted": True,
            "plugins": {self.plugin.name: self.settings()},
            **self._choice(),
            **self.config(),
            **config,
        }
        return compose(AgentConfig(**fields), isolated_registry(self.plugin, *others))

    def _choice(self) -> dict[str, Any]:
        """The setting that chooses the plugin."""
        name = self.plugin.name
        return {self.seam.setting: name if self.seam in (AGGREGATOR, STORE) else [name]}

    # --- the class --------------------------------------------------------------------------------

    async def test_the_class_is_what_its_seam_asks_for(self) -> None:
        problems = check_class(self.plugin, self.seam, self.plugin.name, "the plugin")

        assert [str(problem) for problem in problems] == []

    async def test_its_module_offers_it_through_the_hook(self) -> None:
        registry = Registry()
        registry.register(self._module(), name=self.plugin.name)

        loaded = registry.load(self.plugin.name)

        assert [str(problem) for problem in loaded.problems] == []
        assert loaded.classes.get(self.seam.kind) is self.plugin

    def _module(self) -> ModuleType:
        if self.module is not None:
            return self.module
        name = self.plugin.__module__
        while name:
            found = sys.modules[name]
            if hasattr(found, self.seam.hook):
                return found
            name = name.rpartition(".")[0]
        return sys.modules[self.plugin.__module__]

    async def test_making_one_opens_nothing(self) -> None:
        """After a fork a child makes it anew, perhaps in the middle of a request."""
        self.make()  # what is imported late is imported now

        with watched() as seen:
            self.make()

        assert seen == []

    async def test_a_misspelt_setting_is_refused(self) -> None:
        with pytest.raises(ValidationError):
            self.plugin.Settings.model_validate({**self.settings(), "a_misspelt_setting": 1})

    async def test_it_can_be_composed_with_its_settings(self) -> None:
        plan = self.compose()

        assert [str(problem) for problem in plan.problems if problem.code != "GA201"] == []
        assert self.plugin in {step.cls for step in _steps(plan)}
        plan.build()


class ResourceContract(PluginContract):
    """What must hold for a plugin that lives on the agent's event loop."""

    async def test_close_without_open_is_safe(self) -> None:
        plugin: Resource = self.make()

        await plugin.close()

    async def test_close_is_idempotent(self) -> None:
        plugin: Resource = self.make()
        await plugin.open()

        await plugin.close()
        await plugin.close()

    async def test_close_leaves_no_task_behind(self) -> None:
        before = asyncio.all_tasks()
        plugin: Resource = self.make()

        await plugin.open()
        await self.work(plugin)
        await plugin.close()

        # What was cancelled may need a few turns to end.
        left = asyncio.all_tasks() - before
        if left:
            _, left = await asyncio.wait(left, timeout=1.0)
        assert left == set()

    async def work(self, plugin: AnyPlugin) -> None:
        """Have an open plugin do once what it is for."""


def _steps(plan: Plan) -> list[Any]:
    merging = [] if plan.aggregator is None else [plan.aggregator]
    return [*merging, *plan.enrichers, plan.store, *plan.transports, *plan.rules]


async def cancel_while_silent(work: Coroutine[Any, Any, Any], peer: AnsweringPeer) -> None:
    """
    Have the peer not answer ``work``, and cancel that.

    Raises:
        AssertionError: it ended before, or did not end then, or swallowed the cancellation.
    """
    before = len(peer.requests)
    peer.say("silent")
    # What blocks the event loop would block the test for ever.
    watchdog = threading.Timer(PATIENCE, peer.stop)
    watchdog.daemon = True
    watchdog.start()
    try:
        task = asyncio.ensure_future(work)
        while len(peer.requests) == before and not task.done():
            await asyncio.wait([task], timeout=0.01)
        await asyncio.wait([task], timeout=0.05)
        assert not task.done(), f"there was no answer, and it returned {task.result()}"
        task.cancel()
        await asyncio.wait([task], timeout=PATIENCE)
        assert task.cancelled(), "cancellation must end it, and must not be swallowed"
    finally:
        watchdog.cancel()


async def beats_during(work: Any) -> int:
    """How often the event loop came round while ``work`` was awaited; 0 when it was blocked."""
    beats = 0
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait([task], timeout=0.01)
        beats += 1
    await task
    return beats - 1


class _Watch(threading.local):
    seen: list[str] | None = None


_watch = _Watch()
_hooked = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    seen = _watch.seen
    if seen is not None and event in _BLOCKING:
        seen.append(f"{event} {arguments[:1]}")


@contextmanager
def watched() -> Iterator[list[str]]:
    """What this thread does that may block."""
    global _hooked  # noqa: PLW0603 - an audit hook cannot be removed, so there is one
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    seen: list[str] = []
    _watch.seen = seen
    try:
        yield seen
    finally:
        _watch.seen = None
