"""``guard-agent plan``: what would run, in which order, and why it is safe."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from guard_agent import Stage
from guard_agent.cli.output import json_option, print_json
from guard_agent.cli.setup import Setup, ends_with_problems, hint, setup_options
from guard_agent.core.assembly.composition import WARNINGS

if TYPE_CHECKING:
    from guard_agent.core.assembly.plan import Plan, Step


@click.command()
@setup_options
@json_option
@ends_with_problems
def command(setup: Setup, as_json: bool) -> None:
    """
    Show what would run, in which order, and why it is safe.

    Ends with 1 when a plugin had to be left out, with 78 when nothing can run.
    """
    plan, note = setup.compose()
    if as_json:
        print_json(_described(plan, setup.source, note))
    else:
        click.echo(f"Configuration: {setup.source}")
        if note:
            click.echo(note)
        click.echo(f"\n{plan.explain()}")
        hint(plan.problems)
    left_out = any(problem.code not in WARNINGS for problem in plan.problems)
    raise SystemExit(1 if left_out else 0)


def _described(plan: Plan, source: str, note: str) -> dict[str, Any]:
    return {
        "configuration": source,
        "note": note,
        "path": [_step(step) for step in (*plan.enrichers, plan.store, *plan.transports)],
        "fallback": None if plan.fallback is None else plan.fallback.instance,
        "rules": [_step(step) for step in plan.rules],
        "redacted": any(step.stage is Stage.REDACT for step in plan.enrichers),
        "problems": [asdict(problem) for problem in plan.problems],
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "name": step.instance,
        "kind": step.kind,
        "stage": None if step.stage is None else step.stage.name.lower(),
        "distribution": step.distribution,
        "version": step.version,
    }
