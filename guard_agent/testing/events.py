"""
The events of an application under test, in memory.

As a fixture of `guard_agent.testing.pytest_plugin` it is called ``guard_events``. Without pytest::

    with GuardEvents() as events:
        ...  # use the application
        events.one("ip_banned", ip="192.0.2.1")
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from guard_agent import Accepted, Batch, SendResult, Transport, __version__, client
from guard_agent.core.agent import Agent, living_agents
from guard_agent.core.assembly.composition import compose
from guard_agent.core.assembly.plan import Step
from guard_agent.core.assembly.registry import Registry
from guard_agent.plugins.memory import MemoryStore
from guard_agent.testing.registry import InCode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from typing_extensions import Self

    from guard_agent import AgentConfig, Kind, Record
    from guard_agent.core.assembly.plan import Plan

_NAME = "guard_events"
_PATIENCE = 30.0
_MOST_SHOWN = 30
_LONGEST_VALUE = 120
_SHORT = {"ip": "ip_address"}
_FIRST = ("ip_address", "method", "endpoint", "status_code", "action_taken", "reason")
_UNTOLD = {"event_type", "idempotency_key", "timestamp"}


class GuardEvents:
    """
    Every agent of this process keeps its records here instead of sending them.

    While it is entered nothing leaves the process, and no rules are fetched: agents that exist are
    diverted, and those that are made are composed with the enrichers of their configuration, a
    store in memory and this as the only destination. So an event is here as a collector would have
    got it, redacted. At the end everything is as it was before.

    An event is a dictionary with the fields of `guard_agent.SecurityEvent` that it has.
    """

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._taken_over: list[Agent] = []
        self._made: list[Agent] = []
        self._process: tuple[Any, ...] | None = None

    # --- while it lasts ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """
        Raises:
            RuntimeError: there is one already.
        """
        process = client._process  # noqa: SLF001 - the one agent of the process lives there
        with process.lock:
            if process.compose is not None:
                msg = "guard_events is in use already: one at a time"
                raise RuntimeError(msg)
            agent = process.agent
            self._process = (agent, process.given, process.warned)
            process.compose = self._compose
            if agent is not None and agent.stopped:
                # That of another test; the app makes its own. One that runs may be that of the app.
                process.agent = process.given = None
        self._taken_over = living_agents()
        wait([agent.divert(self._diverted(agent.plan)) for agent in self._taken_over], _PATIENCE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process = client._process  # noqa: SLF001 - as above
        with process.lock:
            process.compose = None
            if self._process is not None:
                process.agent, process.given, process.warned = self._process
        wait([agent.stop() for agent in self._made], _PATIENCE)
        wait([agent.give_back() for agent in self._taken_over], _PATIENCE)

    def _compose(self, config: AgentConfig) -> Agent:
        """An agent with the enrichers that ``config`` names."""
        registry = Registry.from_environment()
        registry.register(InCode([self._sink()]), name=_NAME, distribution="guard-agent")
        agent = Agent(compose(_changed(config), registry))
        self._made.append(agent)
        return agent

    def _diverted(self, plan: Plan) -> Plan:
        sink, memory = self._sink(), MemoryStore
        return dataclasses.replace(
            plan,
            config=_changed(plan.config),
            store=Step("memory", "store", memory, memory.Settings(), "guard-agent", __version__),
            transports=(Step(_NAME, "transport", sink, sink.Settings(), "guard-agent", ""),),
            rules=(),
            fallback=None,
        )

    def _sink(self) -> type[Transport]:
        records = self._records

        class Sink(Transport):
            name: ClassVar[str] = _NAME

            async def send(self, batch: Batch) -> SendResult:
                records.extend(batch.records)
                return Accepted()

        return Sink

    def _settle(self) -> None:
        """Have everything that was recorded so far here."""
        running = [agent for agent in living_agents() if not agent.stopped]
        _, late = wait([agent.flush() for agent in running], _PATIENCE)
        if late:
            msg = f"an agent did not hand over its records within {_PATIENCE:.0f} s"
            raise TimeoutError(msg)

    # --- what came --------------------------------------------------------------------------------

    def _came(self, kind: Kind) -> list[dict[str, Any]]:
        # The agent sends the important ones first.
        records = sorted(self._records, key=lambda record: record.accepted_at)
        return [orjson.loads(record.payload) for record in records if record.kind == kind]

    def all(self, event_type: str | None = None, /, **fields: Any) -> list[dict[str, Any]]:
        """
        The events of this type with these fields, in order; without arguments all of them.

        A value is compared with ``==``; a compiled pattern has to be found in the text, and of a
        mapping every item has to be there: ``metadata={"duration": 600}``. ``ip`` stands for
        ``ip_address``.
        """
        wanted = self._wanted(event_type, fields)
        self._settle()
        return [event for event in self._came("event") if not _differences(event, wanted)]

    def one(self, event_type: str | None = None, /, **fields: Any) -> dict[str, Any]:
        """
        The only such event; arguments as for `all`.

        Raises:
            AssertionError: there is none, or more than one; lists what came.
        """
        found = self.all(event_type, **fields)
        if len(found) != 1:
            self._fail("one", event_type, fields, f"{len(found) or 'no'} such events", found)
        return found[0]

    def none(self, event_type: str | None = None, /, **fields: Any) -> None:
        """
        Assert that there is no such event; arguments as for `all`.

        Raises:
            AssertionError: there is; lists what came.
        """
        if found := self.all(event_type, **fields):
            self._fail("none", event_type, fields, f"{len(found)} such events", found)

    def count(self, event_type: str | None = None, /, **fields: Any) -> int:
        """How many such events there are; arguments as for `all`."""
        return len(self.all(event_type, **fields))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All metrics, in order, with the fields of `guard_agent.SecurityMetric`."""
        self._settle()
        return self._came("metric")

    def clear(self) -> None:
        """Forget what came so far."""
        self._settle()
        self._records.clear()

    def __len__(self) -> int:
        return self.count()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.all())

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        types = Counter(str(event.get("event_type")) for event in self._came("event"))
        told = ", ".join(f"{count} x {name}" for name, count in types.most_common())
        return f"<GuardEvents: {told or 'none'}>"

    # --- when it is not what it should be ---------------------------------------------------------

    @staticmethod
    def _wanted(event_type: str | None, fields: Mapping[str, Any]) -> dict[str, Any]:
        wanted = {_SHORT.get(name, name): value for name, value in fields.items()}
        return wanted if event_type is None else {"event_type": event_type, **wanted}

    def _fail(
        self,
        method: str,
        event_type: str | None,
        fields: Mapping[str, Any],
        what: str,
        found: list[dict[str, Any]],
    ) -> None:
        said = [repr(event_type)] if event_type is not None else []
        said += [f"{name}={value!r}" for name, value in fields.items()]
        wanted = self._wanted(event_type, fields)
        events = self._came("event")
        lines = [f"guard_events.{method}({', '.join(said)}): there are {what}"]
        if event_type is not None and not found:
            known = {str(event.get("event_type")) for event in events}
            if event_type not in known and (
                near := difflib.get_close_matches(event_type, known, 1)
            ):
                lines[0] += f"; did you mean {near[0]!r}?"
        lines.append(f"{len(events)} events came" + (":" if events else self._why_none()))
        for event in events[:_MOST_SHOWN]:
            mark = ">" if event in found else " "
            lines.append(f"{mark} {_told(event)}")
            differences = _differences(event, wanted)
            if differences and (event_type is None or event.get("event_type") == event_type):
                lines.append(f"    but {'; '.join(differences)}")
        if len(events) > _MOST_SHOWN:
            lines.append(f"  and {len(events) - _MOST_SHOWN} more")
        lines += self._dropped()
        raise AssertionError("\n".join(lines))

    def _why_none(self) -> str:
        if self._records or self._dropped():
            return ""
        return ", and no metrics either: is enable_agent=True set, and was there a request?"

    @staticmethod
    def _dropped() -> list[str]:
        dropped: Counter[str] = Counter()
        for agent in living_agents():
            if (balance := agent.balances().get(_NAME)) is not None:
                dropped.update({str(reason): n for reason, n in balance.dropped.items()})
        return [f"dropped by the agent: {dict(dropped)}"] if dropped else []


def _changed(config: AgentConfig) -> AgentConfig:
    used = config.enrichers
    return config.model_copy(
        update={
            "transports": [_NAME],
            "store": "memory",
            "rules": [],
            "plugins": {name: config.plugins[name] for name in config.plugins if name in used},
            "max_requests_per_second": 100_000,
        }
    )


def _differences(event: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Why ``event`` is not what is ``wanted``; nothing when it is."""
    found = []
    for name, value in wanted.items():
        got = event.get(name)
        if isinstance(value, re.Pattern):
            if not isinstance(got, str) or value.search(got) is None:
                found.append(f"{name} is {_short(got)}, without {value.pattern!r}")
        elif isinstance(value, Mapping):
            inside = _differences(got, value) if isinstance(got, Mapping) else [_short(got)]
            found += [f"{name}: {difference}" for difference in inside]
        elif name not in event:
            found.append(f"it has no {name}")
        elif got != value:
            found.append(f"{name} is {_short(got)}")
    return found


def _told(event: Mapping[str, Any]) -> str:
    names = [*_FIRST, *(name for name in event if name not in _FIRST)]
    fields = [
        f"{name}={_short(event[name])}"
        for name in names
        if name not in _UNTOLD and event.get(name) not in (None, "", {})
    ]
    return " ".join([str(event.get("event_type")), *fields])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
