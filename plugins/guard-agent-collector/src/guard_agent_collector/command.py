"""The command ``guard-agent collector``."""

from __future__ import annotations

import asyncio
import logging
import signal
import webbrowser
from contextlib import suppress
from pathlib import Path

import click

from guard_agent import GuardAgentError, check_endpoint, state_directory
from guard_agent_collector.server import MAX_BODY, CollectorServer, ServerOptions
from guard_agent_collector.storage import LEAST_BYTES

DEFAULT_PORT = 8700
EX_CONFIG = 78


@click.command(name="collector", short_help="Run a local collector with a live page.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="0 takes a free one.",
)
@click.option(
    "--token",
    envvar="GUARD_COLLECTOR_TOKEN",
    help="What page and agents must show; needed when --host is not loopback.",
)
@click.option("--allow-host", "names", multiple=True, help="A further host name it is reached by.")
@click.option(
    "--api-key", envvar="GUARD_COLLECTOR_API_KEY", help="The only key taken from agents; else any."
)
@click.option(
    "--signing-secret",
    envvar="GUARD_COLLECTOR_SIGNING_SECRET",
    help="Take signed requests only (payload_signing_secret of the agents).",
)
@click.option(
    "--encryption-key",
    "encryption_keys",
    multiple=True,
    envvar="GUARD_COLLECTOR_ENCRYPTION_KEY",
    help="Opens encrypted batches (project_encryption_key of the agents).",
)
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
@click.option(
    "--once",
    type=click.IntRange(min=1),
    metavar="N",
    help="Exit with 0 after N new events and metrics; one that stands for several counts as them.",
)
@click.option("--forward", metavar="URL", help="Also send everything accepted to this collector.")
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also append everything accepted to this file.",
)
@click.option(
    "--replay",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="First take in what --record wrote.",
)
@click.option(
    "--database",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where it keeps what it got; else collector.db in the agent's state folder.",
)
@click.option(
    "--max-mb",
    type=click.IntRange(min=LEAST_BYTES // 2**20),
    default=256,
    show_default=True,
    help="Bound of that file; the oldest records go.",
)
@click.option(
    "--max-body",
    type=click.IntRange(min=4096),
    default=MAX_BODY,
    show_default=True,
    help="Most bytes of one request, inflated.",
)
def command(  # noqa: PLR0913, PLR0917 - one for each option
    host: str,
    port: int,
    token: str | None,
    names: tuple[str, ...],
    api_key: str | None,
    signing_secret: str | None,
    encryption_keys: tuple[str, ...],
    open_page: bool,
    once: int | None,
    forward: str | None,
    record: Path | None,
    replay: Path | None,
    database: Path | None,
    max_mb: int,
    max_body: int,
) -> None:
    """
    Run a collector on this machine and show what arrives, in a browser.

    For development: it keeps everything in a file, and refuses to start where the environment says
    production. Ctrl-C ends it.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if forward is not None:
            _check_url(forward)
        options = ServerOptions(
            database=database or state_directory() / "collector.db",
            host=host,
            port=port,
            token=token,
            names=names,
            api_key=api_key,
            signing_secret=signing_secret,
            encryption_keys=encryption_keys,
            max_body=max_body,
            max_bytes=max_mb * 2**20,
            once=once,
            forward=forward,
            record=record,
        )
        ended = asyncio.run(_serve(options, replay, open_page=open_page))
    except GuardAgentError as error:
        click.echo(error, err=True)
        raise SystemExit(EX_CONFIG) from None
    except KeyboardInterrupt:
        ended = False
    if not ended and once is not None:
        raise SystemExit(1)


async def _serve(options: ServerOptions, replay: Path | None, *, open_page: bool) -> bool:
    """Serve until it has what it waits for, which is True, or is told to end."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError, RuntimeError):  # Windows
            loop.add_signal_handler(number, told.set)
    async with CollectorServer(options) as server:
        click.echo(f"collector listening on {server.url}")
        click.echo(f"page: {server.page_url}")
        if replay is not None:
            new, refused = await server.replay(replay)
            click.echo(f"replayed {replay}: {new} new records, {refused} requests refused")
        if open_page:
            await asyncio.to_thread(webbrowser.open, server.page_url)
        finished = asyncio.create_task(server.finished())
        ending = asyncio.create_task(told.wait())
        await asyncio.wait([finished, ending], return_when=asyncio.FIRST_COMPLETED)
        done = finished.done()
        for task in (finished, ending):
            task.cancel()
        await asyncio.gather(finished, ending, return_exceptions=True)
        return done


def _check_url(url: str) -> None:
    try:
        check_endpoint(url)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--forward") from None
