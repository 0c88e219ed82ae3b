"""
This release beside guard-agent 3.2.4, interleaved, each measurement in a process of its own.

    make bench

Prints medians with their spread, and ratios; a ratio below 1 is in favour of this release, but for
records per second, where it is the other way round.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from peers import peer

HERE = Path(__file__).resolve().parent
ROUNDS = 7
ROWS = {"send": 5_000, "deliver": 5_000}


def measure(python: Path, row: str, count: int, folder: Path) -> dict[str, float]:
    sink = subprocess.Popen(
        [sys.executable, HERE / "sink.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert sink.stdout is not None
        port = sink.stdout.readline().strip()
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "COLLECTOR": f"http://127.0.0.1:{port}",
        }
        done = subprocess.run(
            [python, HERE / "worker.py", row, str(count)],
            env=environment,
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        result: dict[str, float] = json.loads(done.stdout)
        return result
    finally:
        sink.communicate(timeout=10)  # closes its input, which ends it


def main() -> None:
    pythons = {
        "4.0.0": Path(sys.executable),
        "3.2.4": peer("guard-agent-3.2.4", "guard-agent==3.2.4"),
    }
    print(f"{'':34}{'4.0.0':>22}{'3.2.4':>22}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for row, count in ROWS.items():
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
            for _ in range(ROUNDS):
                for name, python in pythons.items():
                    runs[name].append(measure(python, row, count, Path(folder)))
            for figure in runs["4.0.0"][0]:
                ours, theirs = (sorted(run[figure] for run in runs[name]) for name in pythons)
                cells = [
                    f"{statistics.median(v):,.0f} ({v[0]:,.0f}-{v[-1]:,.0f})"
                    for v in (ours, theirs)
                ]
                ratio = statistics.median(ours) / statistics.median(theirs)
                print(
                    f"{row + ', ' + figure:34}{cells[0]:>22}{cells[1]:>22}{ratio:>8.2f}", flush=True
                )


if __name__ == "__main__":
    main()
