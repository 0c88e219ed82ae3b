from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SWEEP = Path(__file__).with_name("kill_sweep.py")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it forks, which Windows cannot")

BROKEN = """
import asyncio
from dataclasses import replace
from guard_agent import Appended
from guard_agent.plugins.disk import DiskStore

class ConfirmsTooEarly(DiskStore):
    task = None

    async def append(self, records, *, evict):
        if self.task is not None:
            await self.task
        self.task = asyncio.ensure_future(super().append(records, evict=evict))
        return Appended(len(records))

class ForgetsAcks(DiskStore):
    async def ack(self, lease, ids):
        forgotten = int(len(ids) > 20)
        return await super().ack(lease, ids[forgotten:]) + forgotten

class AcksUnseen(DiskStore):
    async def lease(self, *arguments):
        lease = await super().lease(*arguments)
        if lease is not None and len(lease.entries) > 1:
            unseen, *entries = lease.entries
            await super().ack(lease, [unseen])
            lease = replace(lease, entries={entry: lease.entries[entry] for entry in entries})
        return lease
"""


def sweep(*arguments, modules=""):
    path = os.pathsep.join(filter(None, (str(modules), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, str(SWEEP), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_p01_no_confirmed_record_is_lost_by_forty_kills():
    """
    P01 in its short form; the long one is the script itself.
    """
    done = sweep("--kills", "40")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills                     40\n" in done.stdout
    assert "confirmed and lost        0\n" in done.stdout


@pytest.mark.parametrize(
    ("store", "complaint"),
    [
        ("ConfirmsTooEarly", " for one"),
        ("ForgetsAcks", "after its ack"),
        ("AcksUnseen", " for one"),
    ],
)
def test_the_sweep_finds_a_store_that_breaks_its_promise(tmp_path, store, complaint):
    (tmp_path / "broken.py").write_text(BROKEN)

    done = sweep(*("--kills", "12", "--no-strace", "--store", f"broken:{store}"), modules=tmp_path)

    assert done.returncode == 1, done.stdout + done.stderr
    assert complaint in done.stdout, done.stdout + done.stderr
