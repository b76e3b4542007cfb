"""Which budget counts."""

import pytest

from fedspeech.budgets import BASE, GENERIC, PERSONAL, Budgets
from fedspeech.config.budget import BudgetSettings


def test_without_settings_nothing_is_bounded():
    budgets = Budgets(BudgetSettings(), 1000, {})
    assert [budgets.of("a", what) for what in (GENERIC, BASE, PERSONAL)] == [None] * 3
    assert budgets.of("a", BASE, "40x") == 25


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ((), 100),
        (({"base": "50B"},), 50),
        (({"base": "200B"},), 100),
        (({"base": "60B"}, {"base": "20x"}), 50),
        (({"personal": "1B"},), 100),
    ],
)
def test_the_least_of_all_that_speak_of_a_device_counts(own, expected):
    budgets = Budgets(BudgetSettings(base="10x", generic="5x"), 1000, {"a": own})
    assert budgets.of("a", BASE) == expected
    assert budgets.of("b", BASE) == 100
    assert budgets.of("a", BASE, "30B") == 30
    assert budgets.of("a", GENERIC) is None  # only what speaks of this device


def test_a_generation_is_within_what_the_device_allows():
    budgets = Budgets(BudgetSettings(generic="5x"), 1000, {"a": ({"generic": "100B"},)})
    assert (budgets.of("a", GENERIC), budgets.of("b", GENERIC)) == (100, None)
