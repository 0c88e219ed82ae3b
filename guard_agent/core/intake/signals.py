"""To tell the end that a signal handler of the application asks for from a defect of a plugin."""

from __future__ import annotations

import inspect
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


def ends_the_application() -> bool:
    """
    Whether what is being handled is a `SystemExit` that a signal handler raised.

    Python runs a handler wherever the main thread is, which may be foreign code that we called.
    Then it is the application that wants to end, and the exception has to get out. A `SystemExit`
    of the foreign code itself has not.

    A handler is known by what it is called with: the number of the signal, and the frame that it
    interrupted, which is the one that it returns to. One that forgets its arguments is not known.
    """
    kind, _, trace = sys.exc_info()
    if kind is None or not issubclass(kind, SystemExit):
        return False
    while trace is not None:
        if _handles_a_signal(trace.tb_frame):
            return True
        trace = trace.tb_next
    return False


def _handles_a_signal(frame: FrameType) -> bool:
    names, rest, _, values = inspect.getargvalues(frame)
    given = [values.get(name) for name in names]
    if rest is not None and type(more := values.get(rest)) is tuple:
        given += more
    return any(
        type(number) is int and interrupted is not None and interrupted is frame.f_back
        for number, interrupted in pairwise(given)
    )
