"""The harness of ``make bench`` runs; what it measures is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1] / "benchmarks" / "bench.py"


def test_the_harness_measures_this_release(tmp_path: Path) -> None:
    """Two cheap rows with few records, one without and one with a collector."""
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [
            *(sys.executable, BENCH, "--side", "ours", "--rounds", "1", "--amount", "60"),
            *("--only", "send_metric", "--only", "plain", "--json", figures),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert set(found) == {"metric", "deliver-plain"}
    for measured in found.values():
        assert measured["failed"] == {}
        [run] = measured["runs"]["ours"]
        assert run["cpu"] > 0
    # All of them came, each in its about 1.1 kB of JSON.
    assert 1000 < found["deliver-plain"]["runs"]["ours"][0]["bytes"] < 1500
    assert "send_metric, prebuilt" in done.stdout
