"""``guard-agent check``: would an agent that is started here deliver, and what can cost records?"""

from __future__ import annotations

import asyncio
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import click

from guard_agent import ConfigurationError, GuardAgentError
from guard_agent.cli.output import Finding, json_option, show_findings
from guard_agent.cli.probes import ask_destination, ask_rules, ask_store
from guard_agent.cli.setup import EX_CONFIG, Setup, hint, setup_options
from guard_agent.core.assembly.composition import WARNINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guard_agent.core.assembly.plan import Plan
    from guard_agent.core.errors import Problem

_ENDED_BY_SIGNAL = ("uvicorn", "tornado")
"""Servers after which no exit handler of Python runs, or none that handles SIGTERM."""


@click.command()
@setup_options
@click.option("--offline", is_flag=True, help="Look at the configuration only; connect to nothing.")
@json_option
def command(setup: Setup, offline: bool, as_json: bool) -> None:
    """
    Check the configuration, the store and the destinations.

    Connects to all of them, unless --offline is given; the collector keeps no record of it. Ends
    with 1 when something does not work, with 78 when the configuration is wrong.
    """
    try:
        plan, note = setup.compose()
    except ConfigurationError as error:
        findings = [_finding("configuration", problem) for problem in error.problems]
        show_findings(findings, as_json=as_json)
        if not as_json:
            hint(error.problems)
        raise SystemExit(EX_CONFIG) from None
    except GuardAgentError as error:
        show_findings([Finding("configuration", "failed", str(error))], as_json=as_json)
        raise SystemExit(EX_CONFIG) from None
    where = f"{setup.source}{note and f': {note}'}"
    findings = [
        Finding("configuration", "note" if note else "ok", where),
        *(_finding("composition", problem) for problem in plan.problems),
        Finding("composition", "ok", _path(plan)),
        *_survival(plan),
    ]
    if not (offline or note):
        findings += asyncio.run(_environment(plan))
    raise SystemExit(show_findings(findings, as_json=as_json))


def _finding(about: str, problem: Problem) -> Finding:
    harmless = not problem.fatal and problem.code in WARNINGS
    text = f"{problem.code}: {problem.message}; fix: {problem.fix}"
    return Finding(about, "note" if harmless else "failed", text, {"code": problem.code})


def _path(plan: Plan) -> str:
    transports = " and ".join(step.instance for step in plan.transports)
    return " > ".join([*(step.instance for step in (*plan.enrichers, plan.store)), transports])


def _survival(plan: Plan) -> Iterator[Finding]:
    store = plan.store.instance
    if plan.fallback is not None:
        yield Finding(f"store {store}", "ok", "records survive a kill of the process")
        return
    yield Finding(
        f"store {store}",
        "note",
        "what waits is lost when the process is killed; store = 'disk' or 'redis' keeps it",
    )
    servers = [name for name in _ENDED_BY_SIGNAL if _is_installed(name)]
    if servers:
        yield Finding(
            "lifecycle",
            "note",
            f"{' and '.join(servers)} can end without running Python's exit handlers: use a helper "
            "of guard_agent.integrations (docs/lifecycle.md), or a durable store",
        )


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


async def _environment(plan: Plan) -> list[Finding]:
    components = plan.build()
    limit = plan.config.timeout
    found: list[Finding] = []
    if components.durable is not None:
        found += await ask_store(components.durable, limit)
    for transport in components.transports:
        found += await ask_destination(transport, limit)
    for source in components.rules:
        found.append(await ask_rules(source, limit))
    return found
