"""Environments with the releases that this one is measured beside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".bench"


def peer(name: str, *requirements: str) -> Path:
    """The interpreter of an environment with ``requirements``; made at the first run."""
    environment = FOLDER / name
    python = environment / "bin" / "python"
    installed = environment / ".installed"
    if not installed.exists():
        print(f"installing {name} beside, once", flush=True)
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", *requirements], check=True)
        installed.touch()
    return python
