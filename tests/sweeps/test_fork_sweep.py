"""P03: forks under recording threads, in the short form of ``fork_sweep.py``."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SWEEP = runpy.run_path(str(Path(__file__).with_name("fork_sweep.py")))


def test_p03_forks_under_recording_threads_hang_lose_and_copy_nothing():
    seen = SWEEP["sweep"](150)

    assert SWEEP["is_sound"](seen), seen


@pytest.mark.parametrize("wrong", ["hung", "lost of children", "twice", "lost of the parent"])
def test_the_sweep_finds_what_is_wrong(wrong):
    seen = {"forks": 1, "hung": 0, "recorded by the parent": 1, "lost of the parent": 0}
    seen |= {"lost of children": 0, "twice": 0}

    assert SWEEP["is_sound"](seen)
    assert not SWEEP["is_sound"]({**seen, wrong: 1})
    assert not SWEEP["is_sound"]({**seen, "recorded by the parent": 0})
