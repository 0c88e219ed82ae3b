"""``guard-agent explain``: what a code means."""

from __future__ import annotations

import textwrap

import click

from guard_agent.cli.output import json_option, print_json, print_table
from guard_agent.core.assembly.codes import CODES
from guard_agent.core.assembly.problems import did_you_mean


@click.command()
@click.argument("code", required=False)
@json_option
def command(code: str | None, as_json: bool) -> None:
    """
    Say what the CODE of a problem means.

    And why it is one, and how to mend it. Without a CODE all of them are listed.
    """
    if code is None:
        if as_json:
            print_json({name: entry._asdict() for name, entry in CODES.items()})
        else:
            print_table([(name, entry.what) for name, entry in CODES.items()])
        return
    name = code.strip().upper()
    if name not in CODES:
        msg = f"there is no code {code!r}{did_you_mean(name, CODES)}"
        raise click.BadParameter(msg, param_hint="CODE")
    entry = CODES[name]
    if as_json:
        print_json({"code": name, **entry._asdict()})
        return
    parts = [f"{name}: {entry.what}", entry.why, f"To mend it: {entry.fix}"]
    click.echo("\n\n".join(textwrap.fill(part, 88) for part in parts))
