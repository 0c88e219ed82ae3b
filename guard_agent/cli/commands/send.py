"""``guard-agent send``: one marked event, through the real enrichers to the real destinations."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from guard_agent import (
    Accepted,
    Batch,
    Enricher,
    Record,
    SecurityEvent,
    __version__,
    get_current_timestamp,
)
from guard_agent.cli.output import Finding, json_option, show_findings
from guard_agent.cli.probes import asked
from guard_agent.cli.setup import EX_CONFIG, Setup, ends_with_problems, setup_options
from guard_agent.core.delivery.calls import PluginHangs
from guard_agent.core.delivery.trace import describe_attempt, described
from guard_agent.core.intake.pipeline import Pipeline
from guard_agent.core.logs import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guard_agent import EnrichFunction, Fields, Kind, Transport

EVENT_TYPE = "guard_agent_test"
_LONGEST = 60


@click.command()
@setup_options
@json_option
@ends_with_problems
def command(setup: Setup, as_json: bool) -> None:
    """
    Send a marked test event, and show what becomes of it.

    That is what each enricher changed, and what each destination answered. The event has the type
    guard_agent_test and made-up secrets, which must not arrive. It goes straight to the
    destinations: the store and what waits in it are left alone. Ends with 1 when a destination did
    not take it.
    """
    plan, note = setup.compose()
    if note:
        click.echo(note, err=True)
        raise SystemExit(EX_CONFIG)
    components = plan.build()
    findings = [Finding("event", "ok", f"{EVENT_TYPE}, made up on {socket.gethostname()}")]

    def saw(name: str, before: Fields, after: Fields | None) -> None:
        changes = ["drops it"] if after is None else list(_changes(before, after))
        text = "; ".join(changes) or "changes nothing"
        findings.append(Finding(name, "ok", text, {"changes": changes}))

    watched = [_Watched(enricher, saw) for enricher in components.enrichers]
    record = Pipeline(watched).encode("event", _event())
    if not isinstance(record, Record):
        findings.append(Finding("event", "failed", f"is dropped: {record.value}"))
    else:
        size = len(record.payload)
        text = f"{size} B, priority {record.priority.name.lower()}, id {record.id}"
        findings.append(Finding("record", "ok", text, {"record": json.loads(record.payload)}))
        batch = Batch("event", (record,))
        limit = plan.config.timeout
        findings += asyncio.run(_deliver(components.transports, batch, limit))
    raise SystemExit(show_findings(findings, as_json=as_json))


def _event() -> SecurityEvent:
    return SecurityEvent(
        timestamp=get_current_timestamp(),
        event_type=EVENT_TYPE,
        ip_address="192.0.2.1",  # an address for documentation (RFC 5737)
        action_taken="none",
        reason="test event of the command guard-agent send",
        endpoint="/guard-agent-test?token=made-up-secret-of-a-test",
        method="GET",
        user_agent=f"guard-agent/{__version__}",
        metadata={
            "guard_agent_test": True,
            "headers": {"authorization": "Bearer made-up-secret-of-a-test"},
            "password": "made-up-secret-of-a-test",
            "long_text": "x" * 2000,
        },
    )


class _Watched(Enricher):
    """An enricher, and somebody who looks at what it does."""

    def __init__(
        self, enricher: Enricher, saw: Callable[[str, Fields, Fields | None], None]
    ) -> None:
        super().__init__(enricher.settings, enricher.context)
        self.stage = enricher.stage  # type: ignore[misc]  # the wrapped class has it as such
        self._enricher = enricher
        self._saw = saw

    def bind(self, kind: Kind) -> EnrichFunction | None:
        function = self._enricher.bind(kind)
        if function is None:
            return None

        def watched(fields: Fields) -> Fields | None:
            before = deepcopy(fields)
            after = function(fields)
            self._saw(self.context.instance, before, deepcopy(after))
            return after

        return watched


def _changes(before: Fields, after: Fields) -> Iterator[str]:
    """``name: old -> new`` for each value that is another one."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in new:
            yield f"{name} removed"
        elif name not in old:
            yield f"{name} added: {_short(new[name])}"
        elif old[name] != new[name]:
            yield f"{name}: {_short(old[name])} -> {_short(new[name])}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}.{number}")
    else:
        yield path, value


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"{one_line(value[: _LONGEST // 3])!r}... ({len(value)} characters)"
    return one_line(repr(value), 2 * _LONGEST)


async def _deliver(transports: tuple[Transport, ...], batch: Batch, limit: float) -> list[Finding]:
    return [await _attempt(transport, batch, limit) for transport in transports]


async def _attempt(transport: Transport, batch: Batch, limit: float) -> Finding:
    about = transport.context.instance
    began = time.monotonic()
    try:
        result = await asked(transport, limit, partial(transport.send, batch))
    except PluginHangs:
        return Finding(about, "failed", f"{transport.collector} did not answer in {limit:g} s")
    except Exception as error:  # noqa: BLE001 - plugin meets core: contract of Transport.send
        return Finding(about, "failed", one_line(f"{type(error).__name__}: {error}"))
    seconds = time.monotonic() - began
    line = describe_attempt(transport, batch, result, seconds).partition(": ")[2]
    facts = {"result": type(result).__name__.lower(), **described(transport)}
    return Finding(about, "ok" if isinstance(result, Accepted) else "failed", line, facts)
