"""``guard-agent explain``, and the command as a program of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from guard_agent.cli import main
from guard_agent.core.assembly.codes import CODES


def run(*arguments):
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_has_a_meaning_a_reason_and_a_cure(code):
    result = run("explain", code.lower())

    assert result.exit_code == 0
    what, why, fix = result.stdout.split("\n\n")
    assert what.startswith(f"{code}: ")
    assert len(why) > 30
    assert fix.startswith("To mend it: ")
    assert CODES[code].fix.endswith(".")


def test_without_a_code_all_of_them_are_listed():
    assert [line.split()[0] for line in run("explain").stdout.splitlines()] == list(CODES)


def test_as_json():
    assert json.loads(run("explain", "GA101", "--json").stdout)["code"] == "GA101"
    assert set(json.loads(run("explain", "--json").stdout)) == set(CODES)


def test_a_code_that_is_none():
    result = run("explain", "GA-101")

    assert result.exit_code == 2
    assert "did you mean 'GA101'?" in result.stderr


def program(*arguments, folder):
    script = Path(sys.executable).with_name("guard-agent")
    return subprocess.run(
        [script, *arguments], check=False, cwd=folder, capture_output=True, text=True, timeout=60
    )


def test_on_a_pipe_there_are_no_colours_and_no_traceback(tmp_path):
    (tmp_path / "guard-agent.yaml").write_text("api_key: x\nstore: memry\ntimout: 1\n")

    result = program("check", folder=tmp_path)

    assert result.returncode == 78
    assert "\x1b" not in result.stdout
    assert "Traceback" not in result.stderr
    assert "did you mean 'timeout'?" in result.stdout


def test_every_command_is_in_the_documentation():
    page = Path(__file__).resolve().parents[2] / "docs" / "command-line.md"
    listed = re.findall(r"^\| `([a-z ]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)

    commands = []
    for name in main.list_commands(None):
        command = main.get_command(None, name)
        parts = getattr(command, "commands", None)
        commands += [f"{name} {part}" for part in parts] if parts else [name]
    assert sorted(listed) == sorted(commands)


def test_every_command_has_help(tmp_path):
    listed = program("--help", folder=tmp_path).stdout.partition("Commands:")[2]
    names = [line.split()[0] for line in listed.splitlines() if line.strip()]

    assert names == [
        "plugins", "plan", "check", "config", "send", "tail", "store", "doctor", "explain", "new",
        "collector",  # of another package
    ]  # fmt: skip
    assert "..." not in listed
    for name in names:
        assert run(name, "--help").exit_code == 0
