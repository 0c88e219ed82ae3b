"""
Has patterns judged in a process of their own.

`re` holds the interpreter lock while it runs, so what may take for ever is tried where it can be
ended, and where it holds up nobody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from guard_agent.core.rules.patterns import Verdict

logger = logging.getLogger("guard_agent.rules")

SECONDS = 20.0
"""For all patterns of one document. Those that are known already take no time."""
_PROGRAM = Path(__file__).with_name("patterns.py")
_KEEP = 5_000
_PASSED_ON = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PATH")

Key = tuple[str, str]
"""Kind (as in `patterns.judge`) and pattern."""


class Judge:
    """
    Judges patterns, and remembers what it found.

    Remembering also makes it steady: a measurement near a bound could come out one way today and
    the other way tomorrow.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._known: dict[Key, Verdict] = {}

    async def __call__(self, wanted: Iterable[Key]) -> dict[Key, Verdict]:
        """
        Judge patterns; those that there was no time for are missing in the answer.

        Cancelling it ends the process.
        """
        keys = list(dict.fromkeys(wanted))
        unknown = [key for key in keys if key not in self._known]
        if unknown:
            found = await _in_child(unknown, self._seconds)
            if len(self._known) + len(found) > _KEEP:
                self._known = {key: self._known[key] for key in keys if key in self._known}
            self._known.update(found)
        return {key: self._known[key] for key in keys if key in self._known}


async def _in_child(keys: Sequence[Key], seconds: float) -> dict[Key, Verdict]:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[Verdict]] = loop.create_future()
    child = _Child(keys, seconds)

    def work() -> None:
        found = child.run()

        def tell() -> None:
            if not answer.done():
                answer.set_result(found)

        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell)

    # A daemon, unlike the threads of an executor: the end of the process does not wait for it.
    threading.Thread(target=work, name="guard-agent-patterns", daemon=True).start()
    try:
        return dict(zip(keys, await answer, strict=False))
    finally:
        child.end()


class _Child:
    """One process, from start to end."""

    def __init__(self, keys: Sequence[Key], seconds: float) -> None:
        self._keys = keys
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False
        self._lock = threading.Lock()

    def run(self) -> list[Verdict]:
        """Verdicts, in order; fewer than keys when the time was up."""
        program = _interpreter()
        try:
            if program is None or not _PROGRAM.is_file():
                return self._here()
            with self._lock:
                if self._ended:
                    return []
                self._process = process = subprocess.Popen(  # noqa: S603 - our own program
                    [program, "-I", "-S", str(_PROGRAM)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                    start_new_session=True,
                )
        except (OSError, ValueError):
            logger.debug("cannot start a process to judge patterns", exc_info=True)
            return self._here()
        with process:  # it closes what leads there
            output, was_ended = self._talk(process)
        verdicts = _read(output)
        if not verdicts and process.returncode and not was_ended:
            return self._here()  # it could not even start to work
        return verdicts

    def _talk(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bool]:
        """What the process said until its end, and whether that was brought about."""
        try:
            output, _ = process.communicate(json.dumps(self._keys).encode(), self._seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[0], True
        except (OSError, ValueError):  # it was ended from elsewhere
            process.kill()
            return b"", True
        return output, self._ended

    def end(self) -> None:
        """End the process, if it runs. Never waits: `run` does that."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.kill()

    def _here(self) -> list[Verdict]:
        """By their shape alone: what is not clearly fast counts as slow."""
        from guard_agent.core.rules.patterns import judge  # noqa: PLC0415 - see `_read`

        return [judge(kind, pattern, measured=False) for kind, pattern in self._keys]


def _read(output: bytes) -> list[Verdict]:
    # Few rules have patterns, and importing the agent must be quick.
    from guard_agent.core.rules.patterns import Verdict  # noqa: PLC0415 - only when judging

    verdicts = []
    for line in output.splitlines():
        try:
            refused, slow, hits = json.loads(line)
        except ValueError:
            break  # cut off when it was ended
        verdicts.append(Verdict(refused, slow, tuple(hits)))
    return verdicts


def _interpreter() -> str | None:
    """A Python like this one. In a program that embeds Python, `sys.executable` is that program."""
    names = [sys.executable, getattr(sys, "_base_executable", None)]
    folder = Path(sys.base_exec_prefix, "bin")
    names.append(str(folder / f"python{sys.version_info[0]}.{sys.version_info[1]}"))
    for name in names:
        if name and Path(name).name.lower().startswith(("python", "pypy")) and Path(name).exists():
            return name
    return None
