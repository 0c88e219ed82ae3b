from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = runpy.run_path(str(Path(__file__).with_name("targets.py")))["TARGETS"]
CONTRACT = ROOT / "guard_agent/testing/contracts/buffer_store.py"
DELIVERY = ["gate", "sizes", "destination", "lanes", "calls", "worker"]


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_and_its_tests_exist(name):
    target = TARGETS[name]
    home = ROOT / target.home

    source = (home / target.source).read_text(encoding="utf-8")
    for function in target.leave_out:
        assert f"def {function}(" in source
    for test in target.tests:
        path = test.removeprefix("--deselect=").partition("::")
        assert (home / path[0]).exists(), test
        if path[1]:
            group, _, name = path[2].rpartition("::")
            file = CONTRACT if group else home / path[0]
            assert f"def {name}(" in file.read_text(encoding="utf-8"), test
            assert group in (home / path[0]).read_text(encoding="utf-8"), test


@pytest.mark.parametrize(
    "folder",
    [
        "guard_agent/core/delivery",
        "guard_agent/core/rules",
        "guard_agent/plugins/disk",
        "plugins/guard-agent-redis/src/guard_agent_redis",
        "plugins/guard-agent-redaction/src/guard_agent_redaction",
    ],
)
def test_every_module_of_a_folder_is_a_target(folder):
    named = {ROOT / target.home / target.source for target in TARGETS.values()}

    modules = {path for path in (ROOT / folder).glob("*.py") if "def " in path.read_text("utf-8")}

    assert modules - named == set()
