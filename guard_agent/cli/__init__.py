"""
The command ``guard-agent``: what is installed, what would run, what waits, and what is wrong.

Each command is a module of `guard_agent.cli.commands` with an attribute ``command``; beside them is
what several of them use. A command ends with 0, with 1 when it found a problem, with 2 when it was
called wrongly, and with 78 (``EX_CONFIG``) when the configuration is wrong.
"""

from __future__ import annotations

import importlib
import logging

import click

from guard_agent import __version__
from guard_agent.cli.installed import InstalledCommands

_COMMANDS = (
    "plugins",
    "plan",
    "check",
    "config",
    "send",
    "tail",
    "store",
    "doctor",
    "explain",
    "new",
)


class _Commands(InstalledCommands):
    """Imports a command when it is asked for, so that one does not pay for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *(n for n in super().list_commands(ctx) if n not in _COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"guard_agent.cli.commands.{cmd_name}")
        command: click.Command = module.command
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="guard-agent")
def main() -> None:
    """Look at the telemetry agent: its plugins, its configuration, and what waits to be sent."""
    # Problems are part of what the commands print; they need not be logged as well.
    logging.getLogger("guard_agent").addHandler(logging.NullHandler())
