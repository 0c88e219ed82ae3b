"""
Writes docs/reliability.md: what is promised when something goes wrong, and which tests prove it.

    python tests/reliability.py

A test belongs to a promise when its name begins with the id of it: ``test_c09_...``, or several of
them, ``test_c15_c16_...``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
COMMAND = "python tests/reliability.py"

OPEN: dict[str, str] = {}
"""Promises without a test of their own: id → why."""

GROUPS = {
    "C": "Collector and network",
    "R": "Redis",
    "S": "Disk",
    "P": "Process",
    "D": "Data",
    "L": "Rules",
    "K": "Keys",
}

PROMISES = {
    "C01": "Any 2xx whose body is empty or JSON is a delivery, and is made once.",
    "C02": "A web page with status 200 is none: the records stay, and it is said once.",
    "C03": "An answer for each record is followed: some accepted, some kept, some set aside.",
    "C04": "A burst of 5xx is waited out with full jitter and a breaker; then everything goes.",
    "C05": "429, and 503 with Retry-After, are obeyed and do not open the breaker.",
    "C07": "Retry-After that makes no sense is ignored, and an hour is the most.",
    "C08": "A batch that is too large is halved by bytes; only a record too large alone is buried.",
    "C09": "One bad record in 1,000 costs itself and at most 25 requests; when all are refused, "
    "they wait.",
    "C11": "A refused key pauses: everything is kept, probed slowly and resumed without help.",
    "C12": "A missing or wrong address pauses in the same way.",
    "C13": "An address that is gone (410) pauses in the same way.",
    "C14": "No redirect is followed; neither records nor the key go elsewhere.",
    "C15": "A request ends after ten seconds in all, however slowly the answer drips.",
    "C16": "A connection that hangs, breaks or is reset costs a time limit, and no record.",
    "C17": "A collector that is down, not found or takes no connection is waited for; names are "
    "looked up beside the application.",
    "C18": "A certificate or protocol that is not right is refused, and the reason is said.",
    "C19": "Of an answer 64 KiB are read (8 MiB of rules), and a bomb is not inflated.",
    "C21": "When an answer is lost, the records come again with the same keys.",
    "C22": "An endpoint that is none is refused by name; plain http to another host is warned of.",
    "C24": "After an outage batches begin with one record, and many agents do not come at once.",
    "C25": "The proxy of the environment is used, never for loopback, and can be ruled out.",
    "R01": "A Redis that is down at the start is used when it is there; until then, memory.",
    "R02": "A Redis that dies costs what was in flight a second delivery, and no record.",
    "R03": "A Redis without memory leaves records to memory, and can still be drained.",
    "R04": "Settings of the server that can lose records are said, once.",
    "R05": "A replica is refused until it is promoted; then it is used without help.",
    "R06": "A Redis that stalls costs its time limit, and holds up neither records nor the end.",
    "R07": "After FLUSHALL the store is built anew, and what was lost is counted.",
    "R09": "What is no record is set aside, and the rest goes on.",
    "R10": "Eight agents with one store deliver every record once.",
    "R11": "What a dead process had taken goes to a living one.",
    "R15": "A server that refuses the user, or more clients, is tried slowly and used again.",
    "R16": "A thousand threads share two connections.",
    "R17": "A server that is too old is refused in one line, and memory does it.",
    "R18": "A Redis client that the application instruments does not record itself.",
    "S01": "A disk that is full or fails costs durability for as long, and no record.",
    "S03": "A folder that cannot be trusted is refused; what is made is for its owner alone.",
    "S04": "A file that another process has locked holds up nothing.",
    "S06": "A child of a fork neither uses nor closes the file of its parent.",
    "P01": "No confirmed record is lost by kill -9 at any moment.",
    "P02": "SIGTERM with a collector away: what is held is stored, in time.",
    "P03": "A fork at any moment leaves a child that works and copies nothing.",
    "P04": "Every kind of server and pool of workers delivers.",
    "P05": "Start and stop are defined in every order, and as often as you like.",
    "P07": "A process that ends in any way delivers or keeps what it holds.",
    "P08": "A cancellation at any await loses no lease and leaves no half state.",
    "P11": "A plugin or callback that misbehaves in any way ends neither delivery nor the app.",
    "P12": "What the agent's own requests cause is never taken as a record.",
    "P13": "A log handler that sends to the agent does not recurse.",
    "P15": "A clock that is set, or a system that slept, changes no delay.",
    "P17": "Days of outage overflow nothing; from five minutes on two requests a minute at most.",
    "D01": "Numbers that JSON does not have become null; what leaves is strict JSON.",
    "D02": "Cycles and fan-out end at a budget.",
    "D03": "Depth ends at a bound, without an error.",
    "D04": "What is too long is cut to 64 KiB for a record, with a mark.",
    "D06": "Keys that are no texts become texts, and none is lost.",
    "D07": "Any object becomes a scalar or its type; no iterator is consumed.",
    "D09": "What the caller changes later does not matter.",
    "D10": "No secret leaves: not on the wire, not into a store, a log, health or a repr.",
    "D11": "Control characters forge neither a line of a log nor a record.",
    "D13": "Unknown types, further fields and any number of tags are taken within bounds.",
    "L01": "A rule document that is not right as a whole is refused, and the last good one stays.",
    "L03": "Rules that are expired, or valid for too long or too short, are refused or bounded.",
    "L04": "Networks that are too broad, or our own, are refused.",
    "L05": "A pattern that can stall the application is refused, and the check cannot stall it.",
    "L07": "Without an answer the last good rules stay until they expire, and health says how old.",
    "L09": "Rules that switch protection off are said loudly; they can be refused, or be signed.",
    "L11": "Polls are spread, conditional, and share the rests of the collector.",
    "K02": "A key that is none keeps the agent from starting; nothing is sent in clear instead.",
}

_TEST = re.compile(r"^ *(?:async )?def (test_(?:[a-z]\d\d_)+\w*)", re.MULTILINE)


class Proof(NamedTuple):
    name: str
    path: str
    """From the root of the repository."""


def find_tests() -> dict[str, list[Proof]]:
    """The tests of each id, in order."""
    files = [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("plugins/*/tests/**/test_*.py")]
    found: dict[str, list[Proof]] = {}
    for file in sorted(files):
        path = file.relative_to(ROOT).as_posix()
        for name in _TEST.findall(file.read_text(encoding="utf-8")):
            marks = re.match(r"test((?:_[a-z]\d\d)+)_", name)
            assert marks is not None
            for mark in marks[1].split("_")[1:]:
                found.setdefault(mark.upper(), []).append(Proof(name, path))
    return {mark: sorted(set(proofs)) for mark, proofs in sorted(found.items())}


def render() -> str:
    """The page."""
    tests = find_tests()
    lines = [
        "# Reliability",
        "",
        "What is promised when something goes wrong, with the tests that prove it. Whatever",
        "happens, recording neither raises nor blocks, the books balance (`accepted == delivered +",
        "dropped + buried + merged + pending`), and `stop()` keeps its deadline.",
        "",
        "The name of a test begins with the id of its promise, such as `test_c09_...`. A test",
        "proves its own fact, not every case one can think of. `make test` runs all of them.",
        "",
        f"This page is made by `{COMMAND}`.",
        "",
        f"{sum(mark in tests for mark in PROMISES)} of {len(PROMISES)} promises have tests.",
    ]
    for letter, title in GROUPS.items():
        lines += ["", f"## {title}", "", "| Id | Promise | Tests |", "| --- | --- | --- |"]
        for mark, promise in PROMISES.items():
            if mark.startswith(letter):
                proofs = "<br>".join(_link(proof) for proof in tests.get(mark, ()))
                lines.append(f"| {mark} | {promise} | {proofs or _open(mark)} |")
    return "\n".join(lines) + "\n"


def _link(proof: Proof) -> str:
    words = proof.name.removeprefix("test_")
    while re.match(r"[a-z]\d\d_", words):
        words = words[4:]
    return f"[{words.replace('_', ' ')}](../{proof.path})"


def _open(mark: str) -> str:
    return f"**open**: {OPEN[mark]}" if mark in OPEN else "**open**"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
