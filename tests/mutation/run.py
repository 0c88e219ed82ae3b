"""
Mutation testing: change the code in small ways and see that a test fails.

``make mutate`` runs it on a sample of every module, ``make mutate ARGS="gate --all"`` on all
mutants of one. Each module is tested with the few files named here, in a folder of its own below
``.mutation``, where mutmut's results stay. See docs/mutation.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mutmut.configuration import reset_config
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import get_mutant_name
from targets import TARGETS, Target

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".mutation"
SAMPLE = 60
SEED = 1
LEAST = 85.0
MEMORY = 6 << 30
"""Bytes of address space for one test process: a loop that never ends must not take the machine."""


def main() -> int:
    arguments = _arguments()
    rows = []
    for name in arguments.modules or TARGETS:
        shutil.rmtree(WORK / name, ignore_errors=True)
        rows.append(_run(name, arguments))
        sys.stdout.write(_table(rows) + "\n")
        sys.stdout.flush()
    return int(any(row.score < LEAST for row in rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(TARGETS))
    parser.add_argument("--all", action="store_true", help="every mutant instead of a sample")
    parser.add_argument("--sample", type=int, default=SAMPLE, help="mutants of each module")
    parser.add_argument("--jobs", type=int, default=1, help="test processes at a time")
    parser.add_argument("--seed", type=int, default=SEED, help="of the sample")
    arguments = parser.parse_args()
    if unknown := set(arguments.modules) - set(TARGETS):
        parser.error(
            f"no such module: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}"
        )
    return arguments


_NOT_RUN = 255
"""What a test process ends with when pytest does not start; mutmut takes it for a timeout."""


@dataclass(frozen=True)
class Row:
    name: str
    mutants: int
    counts: Counter[str]

    @property
    def tested(self) -> int:
        return self.counts.total()

    @property
    def killed(self) -> int:
        return self.counts["killed"] + self.counts["timeout"]

    @property
    def score(self) -> float:
        """Percent killed of those that make a difference; 100 where there is none."""
        different = self.tested - self.counts["same"]
        return 100 * self.killed / different if different else 100.0


def _run(name: str, arguments: argparse.Namespace) -> Row:
    target = TARGETS[name]
    folder = _prepare(name, target)
    os.chdir(folder)
    reset_config()
    source = Path(target.source)
    code = mutate_file_contents(str(source), source.read_text(encoding="utf-8"))
    mutants = [
        get_mutant_name(source, mutant)
        for mutant in code.mutant_names
        if _function(mutant) not in target.leave_out
    ]
    chosen = mutants
    if not arguments.all and arguments.sample < len(mutants):
        chosen = sorted(random.Random(arguments.seed).sample(mutants, arguments.sample))
    if not chosen:  # mutmut would take no names for all
        return Row(name, 0, Counter())
    log = folder / "mutmut.log"
    sys.stdout.write(f"{name}: {len(chosen)} of {len(mutants)} mutants, see {log}\n")
    sys.stdout.flush()
    with log.open("w") as output:
        done = subprocess.run(
            [
                Path(sys.executable).with_name("mutmut"),
                *("run", "--max-children", str(arguments.jobs), *chosen),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            preexec_fn=_limit_memory,
        )
    if done.returncode != 0:
        sys.exit(f"mutmut ended with {done.returncode}; see {log}")
    meta = json.loads(Path("mutants", f"{source}.meta").read_text(encoding="utf-8"))
    codes = {mutant: meta["exit_code_by_key"][mutant] for mutant in chosen}
    if broken := [mutant for mutant, code in codes.items() if code == _NOT_RUN]:
        sys.exit(f"pytest could not be run for {len(broken)} mutants, such as {broken[0]}")
    statuses = {mutant: status_by_exit_code[code] for mutant, code in codes.items()}
    with (folder / "survivors.diff").open("w", encoding="utf-8") as report:
        for mutant, status in statuses.items():
            if status not in {"killed", "timeout"}:
                diff = get_diff_for_mutant(mutant, path=source)
                if _is_same_sql(diff):
                    statuses[mutant] = "same"
                else:
                    report.write(f"# {mutant}: {status}\n{diff}\n")
    return Row(name, len(mutants), Counter(statuses.values()))


def _function(mutant: str) -> str:
    """The function that a mutant is one of: ``x__time__mutmut_3`` is one of ``_time``."""
    return mutant.rpartition("__mutmut_")[0].removeprefix("x_")


def _is_same_sql(diff: str) -> bool:
    """Whether only the case of letters of a SQL statement changes, which SQL does not mind."""
    lines = diff.splitlines()
    before = [line[1:] for line in lines if line.startswith("-") and not line.startswith("---")]
    after = [line[1:] for line in lines if line.startswith("+") and not line.startswith("+++")]
    words = (
        r"\b(SELECT|INSERT|UPDATE|DELETE|PRAGMA|CREATE|DROP|FROM|WHERE|BEGIN|COMMIT|ROLLBACK"
        r"|AND|ORDER BY|LIMIT|VALUES)\b"
    )
    return (
        [line.lower() for line in before] == [line.lower() for line in after]
        and all(re.search(words, line) for line in before)
    )  # fmt: skip


def _prepare(name: str, target: Target) -> Path:
    """A folder for mutmut: the sources, the tests and settings of its own."""
    folder = WORK / name
    folder.mkdir(parents=True)
    home = ROOT / target.home
    for part in (Path(target.source).parts[0], "tests"):
        (folder / part).symlink_to(home / part, target_is_directory=True)
    options = [
        "-c", str(ROOT / "pyproject.toml"), "--timeout=30", "--hypothesis-seed=0",
        "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "selection",
    ]  # fmt: skip
    settings = {
        "source_paths": [Path(target.source).parts[0]],
        "only_mutate": [target.source],
        # What is written to the log is for people; no program depends on its words.
        "do_not_mutate_patterns": [r"\blogger\.\w+\("],
        "pytest_add_cli_args": options,
        "pytest_add_cli_args_test_selection": list(target.tests),
        # Tests use threads, which a process that forks must not have.
        "process_isolation": "forkserver",
        "timeout_constant": 10.0,
        "timeout_multiplier": 4.0,
        "use_git_change_detection": False,
        "debug": True,  # or the log would not say which test fails before anything is changed
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    text = "\n".join(["[tool.mutmut]", *lines, ""])
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _table(rows: list[Row]) -> str:
    total = Row("total", sum(row.mutants for row in rows), Counter())
    for row in rows:
        total.counts.update(row.counts)
    lines = [
        "| module | mutants | tested | killed | timeout | survived | no test | same | score |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in [*rows, total]:
        counts = row.counts
        others = row.tested - row.killed - counts["no tests"] - counts["same"]
        cells = [
            row.mutants, row.tested, counts["killed"], counts["timeout"], others,
            counts["no tests"], counts["same"],
        ]  # fmt: skip
        lines.append(f"| {row.name} | {' | '.join(map(str, cells))} | {row.score:.1f} % |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
