"""docs/reliability.md says what the tests say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).with_name("reliability.py")))
TESTS = SCRIPT["find_tests"]()
PROMISES, OPEN = SCRIPT["PROMISES"], SCRIPT["OPEN"]


def test_the_page_is_current():
    page = SCRIPT["PAGE"].read_text(encoding="utf-8")

    assert page == SCRIPT["render"](), f"docs/reliability.md is old: run {SCRIPT['COMMAND']}"


@pytest.mark.parametrize("mark", PROMISES)
def test_every_promise_has_a_test_or_is_open(mark):
    assert (mark in TESTS) != (mark in OPEN), TESTS.get(mark, "add a test, or a reason to OPEN")


def test_every_id_in_the_name_of_a_test_is_that_of_a_promise():
    assert sorted(set(TESTS) - set(PROMISES)) == []
    assert sorted(set(OPEN) - set(PROMISES)) == []
