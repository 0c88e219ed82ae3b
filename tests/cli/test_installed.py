"""Commands that an installed distribution adds to ``guard-agent``."""

from __future__ import annotations

import importlib

import pytest
from click.testing import CliRunner

from guard_agent.cli import main

MODULE = """
import click

@click.command()
def greet():
    "Say something."
    click.echo("hello from elsewhere")

number = 7
"""
POINTS = """
[guard_agent.commands]
greet = {module}:greet
missing = {module}:nothing
number = {module}:number
plan = {module}:greet
"""


@pytest.fixture(autouse=True)
def distribution(tmp_path, monkeypatch):
    """A distribution with four entry points, of which one works."""
    name = f"commands_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    info = tmp_path / "acme_commands-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-commands\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS.format(module=name))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


def run(*arguments):
    return CliRunner().invoke(main, arguments)


def test_an_installed_command_is_listed_and_runs():
    listed = run("--help")

    assert "greet" in listed.output
    assert "Say something" in listed.output
    assert run("greet").output == "hello from elsewhere\n"


@pytest.mark.parametrize("name", ["missing", "number"])
def test_a_broken_one_says_whose_it_is_and_spoils_nothing_else(name):
    assert run("--help").exit_code == 0

    result = run(name)

    assert result.exit_code == 1
    assert "acme-commands 1.0" in result.output
    assert "Traceback" not in result.output


def test_no_distribution_can_replace_a_command_of_the_agent():
    assert "hello" not in run("plan").output


def test_an_unknown_command_is_unknown():
    assert run("nonsense").exit_code == 2
