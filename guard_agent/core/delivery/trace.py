"""
``GUARD_AGENT_DEBUG=1``: one line on stderr for each attempt to deliver a batch.

For somebody who looks at what an agent does right now. What is worth keeping goes to the log,
changes of state only.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from guard_agent.core.interfaces import Accepted, Partial, Paused, Reject, Retry, TooLarge
from guard_agent.core.logs import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from guard_agent.core.interfaces import Batch, SendResult, Transport

    Trace = Callable[[Transport, Batch, SendResult, float], None]

logger = logging.getLogger("guard_agent.delivery")

VARIABLE = "GUARD_AGENT_DEBUG"
_OFF = ("", "0", "false", "no", "off")


def trace_from_environment() -> Trace | None:
    """What prints a line for an attempt that took so many seconds; None when nobody wants it."""
    return None if os.environ.get(VARIABLE, "").strip().lower() in _OFF else _print


def describe_attempt(transport: Transport, batch: Batch, result: SendResult, seconds: float) -> str:
    """``http: sent 120 records -> http 200 in 41 ms, 5.1 kB gzip``."""
    known = described(transport)
    count = len(batch)
    what = type(result).__name__.lower()
    answer, said = str(known.get("answer", "")), _said(result)
    if answer and isinstance(result, (Retry, Reject, Paused)):
        said = f"{what}: {said}"
    answer = answer or what
    line = f"{transport.context.instance}: sent {count} record{'s' * (count != 1)} -> {answer}"
    line += f" in {1000 * seconds:.0f} ms"
    size = known.get("body_bytes")
    if isinstance(size, int):
        line += f", {kilobytes(size)} {known.get('encoding', 'plain')}"
    return one_line(line + (f": {said}" if said else ""), 500)


def described(transport: Transport) -> Mapping[str, object]:
    """What the transport says of its last attempt; nothing when it fails to."""
    try:
        known: object = transport.describe()
    except Exception:
        # Plugin meets core: it must not cost more than the line.
        name = transport.context.instance
        logger.debug("the transport %r cannot describe itself", name, exc_info=True)
        return {}
    return known if isinstance(known, Mapping) else {}


def kilobytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size} B" if size < 1000 else f"{size / 1000:.1f} kB"


def _said(result: SendResult) -> str:
    if isinstance(result, (Retry, Reject, Paused)):
        return result.reason
    if isinstance(result, Partial):
        return f"{len(result.rejected)} rejected, {len(result.retry)} to be sent again"
    if isinstance(result, TooLarge):
        return "too large" if result.asked else "too large to ask"
    assert isinstance(result, Accepted)  # noqa: S101 - the set is closed
    return ""


def _print(transport: Transport, batch: Batch, result: SendResult, seconds: float) -> None:
    line = describe_attempt(transport, batch, result, seconds)
    # The stream of the host application may be closed, or not be there at all.
    with suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(f"guard-agent[{os.getpid()}] {line}\n")
        sys.stderr.flush()
