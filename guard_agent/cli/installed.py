"""Commands of installed plugins, beside those that are here."""

from __future__ import annotations

import click
import importlib_metadata

GROUP = "guard_agent.commands"
"""Entry points whose names are commands, and whose objects are `click.Command`."""


class InstalledCommands(click.Group):
    """A group that also has the commands of installed distributions; its own go first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = importlib_metadata.entry_points(group=GROUP).names
        return sorted({*super().list_commands(ctx), *found})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for point in importlib_metadata.entry_points(group=GROUP, name=cmd_name):
            return _load(point)
        return None


def _load(point: importlib_metadata.EntryPoint) -> click.Command:
    """The command; one that explains itself when it is broken, so that the others still work."""
    origin = f"{point.dist.name} {point.dist.version}" if point.dist else "an installed package"
    try:
        command = point.load()
    except Exception as error:  # noqa: BLE001 - foreign code; it costs only its own command
        reason = f"{type(error).__name__}: {error}"
    else:
        if isinstance(command, click.Command):
            return command
        reason = f"{point.value} is no click.Command"

    def broken() -> None:
        msg = f"the command {point.name!r} of {origin} cannot be used ({reason}): update {origin}"
        raise click.ClickException(msg)

    return click.Command(point.name, callback=broken, help=f"Broken: {reason}")
