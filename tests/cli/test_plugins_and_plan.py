"""The command ``guard-agent``, in a folder of its own and with real installed plugins."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from guard_agent import __version__
from guard_agent.cli import main

pytestmark = pytest.mark.usefixtures("installed")

GOOD = """
enrichers: [acme-redact]
store: acme-store
transports: [acme-tcp, acme-tcp/eu]
rules: [acme-rules]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GUARD_AGENT_CONFIG", raising=False)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, arguments)


def write(text, name="guard-agent.yaml"):
    Path(name).write_text(text, encoding="utf-8")


def rows(output):
    """The table of ``guard-agent plugins``: name → (kind, distribution, version, state)."""
    cells = [line.split(maxsplit=4) for line in output.splitlines()]
    return {row[0]: tuple(row[1:]) for row in cells if len(row) == 5}


def test_version():
    result = run("--version")

    assert (result.exit_code, result.output) == (0, f"guard-agent, version {__version__}\n")


def test_plugins_shows_what_is_installed_and_what_is_in_use():
    write(f"api_key: a-key-of-a-test\n{GOOD}")

    result = run("plugins")

    assert result.exit_code == 0
    table = rows(result.stdout)
    assert table["acme-tcp"] == ("transport", "acme-guard-fixtures", "1.2.3", "active")
    assert table["acme-store"] == ("store", "acme-guard-fixtures", "1.2.3", "active")
    assert table["acme-lazy"] == ("transport", "acme-guard-fixtures", "1.2.3", "available")


def test_plugins_goes_on_after_broken_ones():
    write(f"api_key: a-key-of-a-test\n{GOOD}")

    result = run("plugins")

    table = rows(result.stdout)
    assert table["acme-exits"][:3] == ("-", "acme-guard-fixtures", "1.2.3")
    assert table["acme-exits"][3] == "broken: GA103, see below"
    assert table["acme-sync-send"][3] == "broken: GA110, see below"
    assert "\nGA110: transport T of acme-guard-fixtures 1.2.3: send is not 'async def'" in (
        result.stdout
    )
    assert result.stdout.count("\nacme-twice ") == 2


def test_plugins_shows_what_is_named_but_missing():
    write("api_key: a-key-of-a-test\nstore: nowhere\n")

    assert rows(run("plugins").stdout)["nowhere"][3].startswith("missing")


def test_plugins_works_with_a_configuration_that_does_not():
    write("bufer_size: 1\n")

    result = run("plugins")

    assert result.exit_code == 0
    assert "GA303" in result.stderr
    assert rows(result.stdout)["acme-tcp"][3] == "available"


def test_plugins_ends_with_1_when_one_in_use_is_broken_or_missing():
    write("api_key: a-key-of-a-test\ntransports: [acme-sync-send]\n")
    broken = run("plugins")
    write("api_key: a-key-of-a-test\nstore: nowhere\n")
    missing = run("plugins")

    assert (broken.exit_code, missing.exit_code) == (1, 1)


def test_plugins_as_json():
    write(f"api_key: a-key-of-a-test\n{GOOD}")

    found = {row["name"]: row for row in json.loads(run("plugins", "--json").stdout)}

    assert found["acme-tcp"]["in_use"]
    assert found["acme-lazy"]["state"] == "available"
    assert found["acme-exits"]["problems"][0]["code"] == "GA103"
    assert found["acme-exits"]["problems"][0]["fix"]


def test_a_disabled_plugin_is_not_imported():
    write("api_key: a-key-of-a-test\n")
    before = set(sys.modules)

    table = rows(run("plugins", "--disable", "acme-exits", "--disable", "acme-lazy").stdout)

    assert table["acme-lazy"] == ("-", "acme-guard-fixtures", "1.2.3", "disabled: not imported")
    assert table["acme-exits"][3] == "disabled: not imported"
    new = set(sys.modules) - before
    assert "acme_guard_fixtures.acme_tcp" in new
    assert "acme_guard_fixtures.acme_lazy" not in new


def test_without_plugins_only_those_of_the_core_are_there():
    write("api_key: a-key-of-a-test\n")

    found = json.loads(run("plugins", "--no-plugins", "--json").stdout)

    assert {row["state"] for row in found if row["distribution"] != "guard-agent"} == {"disabled"}
    others = {row["name"]: row["state"] for row in found if row["distribution"] == "guard-agent"}
    assert (others["memory"], others["console"]) == ("active", "available")


def test_the_plan_without_a_broken_plugin():
    write(f"api_key: a-key-of-a-test\n{GOOD}".replace("acme-tcp/eu", "acme-sync-send"))

    with_it = run("plan")
    without = run("plan", "--disable", "acme-sync-send")

    assert (with_it.exit_code, without.exit_code) == (1, 0)
    assert "GA110" in with_it.stdout
    assert "acme-sync-send" not in without.stdout
    assert "'guard-agent explain GA110' says more" in with_it.stderr


def test_one_instance_can_be_disabled():
    write(f"api_key: a-key-of-a-test\n{GOOD}")

    output = run("plan", "--disable", "acme-tcp/eu").stdout

    assert "acme-tcp" in output
    assert "acme-tcp/eu" not in output


def test_the_plan_is_refused_without_what_redacts():
    write(f"api_key: a-key-of-a-test\n{GOOD}")

    result = run("plan", "--disable", "acme-redact")

    assert result.exit_code == 78
    assert "GA201" in result.stderr


def test_disabling_what_is_not_there_is_a_mistake():
    write(f"api_key: a-key-of-a-test\n{GOOD}")

    result = run("plan", "--disable", "acme-redct")

    assert result.exit_code == 2
    assert "did you mean 'acme-redact'?" in result.stderr


def test_the_plan_as_json():
    write(f"api_key: a-key-of-a-test\n{GOOD}")

    plan = json.loads(run("plan", "--json").stdout)

    assert [step["name"] for step in plan["path"]] == [
        "acme-redact", "acme-store", "acme-tcp", "acme-tcp/eu",
    ]  # fmt: skip
    assert plan["redacted"] is True
    assert plan["path"][0]["stage"] == "redact"


def test_plan_explains_the_configuration_that_was_found():
    write(f"api_key: a-key-of-a-test\n{GOOD}")

    result = run("plan")

    assert (result.exit_code, result.stderr) == (0, "")
    assert "Configuration: guard-agent.yaml" in result.stdout
    assert "acme-tcp/eu" in result.stdout
    assert "Safe: 'acme-redact' removes secrets" in result.stdout
    assert "placeholder" not in result.stdout


def test_plan_takes_the_file_that_is_named():
    write(f"api_key: a-key-of-a-test\n{GOOD}", "other.yaml")

    assert "Configuration: other.yaml" in run("plan", "--config", "other.yaml").stdout


@pytest.mark.parametrize("key", ["", "api_key: '${env:ABSENT_KEY}'\n", "api_key: {file: absent}\n"])
def test_plan_needs_no_key_and_says_so(monkeypatch, key):
    monkeypatch.delenv("ABSENT_KEY", raising=False)
    write(key + GOOD)

    result = run("plan")

    assert result.exit_code == 0
    assert "There is no api_key here, so a placeholder stands for it: " in result.stdout
    assert ("the environment variable ABSENT_KEY, which is not set" in result.stdout) == (
        "env:" in key
    )


def test_plan_fails_with_all_problems_and_ex_config():
    write(f"api_key: a-key-of-a-test\n{GOOD}plugins: {{acme-tcp: {{prot: 1}}}}\n")
    with Path("guard-agent.yaml").open("a", encoding="utf-8") as file:
        file.write("allow_unredacted: false\n")
    text = Path("guard-agent.yaml").read_text(encoding="utf-8")
    write(text.replace("store: acme-store", "store: acme-stor"))

    result = run("plan")

    assert result.exit_code == 78
    assert "GA101: no plugin 'acme-stor' is installed" in result.stderr
    assert "GA112: plugins.acme-tcp.prot (guard-agent.yaml:7)" in result.stderr
    assert result.stdout == ""


def test_plan_does_not_hide_other_problems_behind_a_missing_key():
    write(f"{GOOD}bufer_size: 1\n")

    result = run("plan")

    assert result.exit_code == 78
    assert "GA303" in result.stderr
    assert "GA307" in result.stderr


def test_plan_with_a_file_that_is_missing():
    result = run("plan", "--config", "absent.yaml")

    assert result.exit_code == 78
    assert "GA301" in result.stderr
