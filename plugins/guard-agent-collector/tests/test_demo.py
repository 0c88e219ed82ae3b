"""``make demo`` runs this program; it checks for itself that everything is as it should be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[3] / "examples" / "demo.py"


@pytest.mark.timeout(300)
def test_the_demo_ends_with_a_summary_and_0_when_it_is_not_on_a_terminal(tmp_path):
    done = subprocess.run(
        [sys.executable, str(DEMO)],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.endswith("ENV")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("The page of the collector: http://127.0.0.1:")
    assert lines[-1].startswith("All as it should be")
    assert "  delivered twice       0" in lines
    assert "  secrets               8 planted, 0 found in what was kept" in lines
