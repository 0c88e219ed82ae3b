"""The command ``guard-agent new``: names, and what is in its way."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from guard_agent.cli import main
from guard_agent.cli.commands.new import _CONTRACT_VERSION
from guard_agent.testing.contracts import CONTRACT_VERSION


def new(*arguments):
    return CliRunner().invoke(main, ["new", *map(str, arguments)])


def test_the_templates_are_for_the_suites_of_this_version():
    assert _CONTRACT_VERSION == CONTRACT_VERSION


@pytest.mark.parametrize("kind", ["transport", "store", "rules", "enricher", "aggregator"])
def test_every_placeholder_is_filled_and_every_module_compiles(tmp_path, kind):
    result = new(kind, "my-collector", "--into", tmp_path)

    assert result.exit_code == 0, result.output
    folder = tmp_path / "guard-agent-my-collector"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert [str(path.relative_to(folder)) for path in files] == [
        "README.md",
        "pyproject.toml",
        "src/guard_agent_my_collector/__init__.py",
        "src/guard_agent_my_collector/py.typed",
        "tests/test_contract.py",
    ]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"@[a-z_]+@", text) == []
        if path.suffix == ".py":
            compile(text, str(path), "exec")
    assert list(tmp_path.iterdir()) == [folder], "nothing is left beside it"
    ruff = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "100", "--check"]
    done = subprocess.run([*ruff, folder], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_it_says_what_to_type_next(tmp_path):
    said = new("transport", "my-collector", "--into", tmp_path).output

    assert f"cd {tmp_path / 'guard-agent-my-collector'}" in said
    assert "python -m pip install -e '.[test]'" in said
    assert "  pytest\n" in said


@pytest.mark.parametrize(
    ("typed", "word"),
    [
        ("acme", "acme"),
        ("My_Collector", "my-collector"),
        ("a.b--c", "a-b-c"),
        ("guard-agent-acme", "acme"),
        ("guard_agent_acme", "acme"),
        ("x2", "x2"),
    ],
)
def test_a_name_is_brought_to_the_normal_form(tmp_path, typed, word):
    assert new("enricher", typed, "--into", tmp_path).exit_code == 0

    folder = tmp_path / f"guard-agent-{word}"
    assert f'{word} = "guard_agent_{word.replace("-", "_")}"' in (
        folder / "pyproject.toml"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    ["", "2fast", "-x", "x-", "a/b", "../up", "a b", "m\u00fcll", "x" * 51, "a;b", "guard-agent-"],
)
def test_a_name_that_cannot_be_one_is_refused(tmp_path, name):
    result = new("transport", "--into", tmp_path, "--", name)

    assert result.exit_code == 2
    assert "begin with a letter" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["memory", "http", "guard-agent-redaction"])
def test_the_name_of_an_installed_plugin_is_refused(tmp_path, name):
    result = new("store", name, "--into", tmp_path)

    assert result.exit_code == 2
    assert "is installed already, by guard-agent" in result.output
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    folder = tmp_path / "guard-agent-acme"
    folder.mkdir()
    (folder / "README.md").write_text("mine", encoding="utf-8")

    result = new("store", "acme", "--into", tmp_path)

    assert result.exit_code == 1
    assert "nothing is overwritten" in result.output
    assert [path.name for path in folder.iterdir()] == ["README.md"]
    assert (folder / "README.md").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")

    result = new("store", "acme", "--into", tmp_path / "file" / "below")

    assert result.exit_code == 1
    assert "cannot write" in result.output
    assert "guard-agent-acme" in result.output
