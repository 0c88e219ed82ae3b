"""How much of a record is looked at: exact bounds, anew for each record and in each thread."""

from __future__ import annotations

import threading

import pytest

from guard_agent_redaction.budget import Budget, BudgetError

SHORT, FREE, PAIRS_OF_SHORT = 160, 24, 40


def pairs_left(budget):
    count = 0
    try:
        while True:
            budget.take_pair()
            count += 1
    except BudgetError:
        return count


def test_texts_count_by_their_length_up_to_the_last_character():
    budget = Budget(1_000, 5)
    budget.take_text(600)
    budget.take_text(400)

    with pytest.raises(BudgetError):
        budget.take_text(SHORT + 1)


def test_a_text_that_is_one_character_too_long_is_too_much():
    budget = Budget(1_000, 5)
    with pytest.raises(BudgetError):
        budget.take_text(1_001)


def test_places_count_up_to_the_last():
    assert pairs_left(Budget(1_000, 5)) == 5


def test_so_many_short_texts_are_free_whatever_else_there_was():
    budget = Budget(0, 0)
    for _ in range(FREE):
        budget.take_text(SHORT)

    with pytest.raises(BudgetError):
        budget.take_text(1)


def test_a_text_that_is_not_short_is_never_free():
    with pytest.raises(BudgetError):
        Budget(0, 0).take_text(SHORT + 1)


def test_a_free_text_brings_its_own_places_also_when_there_were_none_left():
    budget = Budget(0, 2)
    budget.take_text(1)
    assert pairs_left(budget) == 2 + PAIRS_OF_SHORT

    budget.take_text(1)
    assert pairs_left(budget) == PAIRS_OF_SHORT


def test_a_record_begins_with_all_of_it():
    budget = Budget(200, 3)
    for _ in range(FREE):
        budget.take_text(1)
    budget.take_text(200)
    pairs_left(budget)

    budget.renew()

    assert pairs_left(budget) == 3
    budget.take_text(200)
    for _ in range(FREE):
        budget.take_text(1)


def test_each_thread_has_its_own():
    budget = Budget(200, 3)
    budget.take_text(200)
    pairs_left(budget)
    left = []
    thread = threading.Thread(target=lambda: left.append(pairs_left(budget)))
    thread.start()
    thread.join()

    assert left == [3]
