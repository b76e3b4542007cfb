import pytest

from fedspeech.aggregation import BestOf, WordErrors
from fedspeech.errors import RuleError
from fedspeech.testing import DummyFederation, check_rule
from strategies.kbest import KBest

ERRORS = {"s00": 5, "s01": 2, "s02": 7, "s03": 2, "s04": 0, "s05": 2}
"""Word errors of each model on 10 words of s02; by WER: s04 | s01 s03 s05 | s00 | (itself)."""


def federation():
    made = DummyFederation(speakers=6)
    for other, errors in ERRORS.items():
        made.word_errors["s02", other] = WordErrors(errors, 10)
    return made


@pytest.mark.parametrize(
    ("k", "best"),
    [
        (1, {"s04"}),
        (2, {"s04", "s01"}),
        (3, {"s04", "s01", "s03"}),
        (4, {"s04", "s01", "s03", "s05"}),
        (5, {"s04", "s01", "s03", "s05", "s00"}),
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_it_takes_the_k_best_and_of_equal_ones_the_first_by_id(k, best, backwards):
    made = federation()
    made.backwards = backwards
    assert made.peers(KBest(k=k))["s02"] == dict.fromkeys(best, 1 / k)


def test_rates_are_compared_and_not_counts():
    made = federation()
    made.word_errors["s02", "s00"] = WordErrors(3, 100)
    made.word_errors["s02", "s04"] = WordErrors(1, 10)
    assert set(made.peers(KBest(k=1))["s02"]) == {"s00"}


def test_all_speakers_share_one_exchange_and_nobody_is_asked_about_itself():
    made = federation()
    asked = {}
    exchange = made.exchange
    made.exchange = lambda questions: exchange(asked.setdefault("questions", questions))
    made.peers(KBest(k=2))
    assert made.exchanges == 1
    assert asked["questions"] == {
        speaker: tuple(other for other in made.speakers if other != speaker)
        for speaker in made.speakers
    }


# By racing.


def apart(speakers=40, words=200):
    """The models of s01, s02 … make about 2, 4 … errors on the 200 words of any speaker."""
    made = DummyFederation(speakers)
    made.word_errors = {
        (s, other): WordErrors(min(2 * number, words), words)
        for s in made.speakers
        for number, other in enumerate(made.speakers)
    }
    return made


@pytest.mark.parametrize("k", [1, 5])
def test_the_promises_hold_with_racing(k):
    for budget in (0.15, 1.0):
        check_rule(KBest, k=k, search="racing", budget=budget)


def test_racing_finds_the_best_or_nearly():
    made = apart()
    best = made.peers(KBest(k=4))["s20"]
    assert set(best) == {"s00", "s01", "s02", "s03"}
    with_all = made.peers(KBest(k=4, search="racing", budget=1.0))
    assert with_all["s20"] == best
    quick = made.peers(KBest(k=4, search="racing", budget=0.15))["s20"]
    assert len(quick) == 4 and all(int(other[1:]) < 12 for other in quick)


def test_its_settings_are_those_of_the_race():
    made = apart()
    asked = {}
    exchange = made.exchange
    made.exchange = lambda questions: exchange(asked.setdefault("questions", questions))
    made.peers(KBest(k=3, search="racing", confidence=0.8, budget=0.4))
    assert asked["questions"]["s01"] == BestOf(
        tuple(s for s in made.speakers if s != "s01"), 3, 0.8, 0.4
    )
    assert (KBest().search, KBest().confidence, KBest().budget) == ("exhaustive", 0.95, 0.15)


def test_racing_counts_errors_on_common_words():
    made = apart(5)
    made.word_errors["s02", "s03"] = WordErrors(3, 10)
    with pytest.raises(
        RuleError, match=r"a race needs the same words for all, s02 has \[10, 200\]"
    ):
        made.peers(KBest(k=1, search="racing"), ["s02"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"search": "fast"}, "search has to be one of exhaustive, racing, found 'fast'"),
        ({"confidence": 1}, "confidence has to be between 0 and 1, found 1"),
        ({"budget": 15}, "budget has to be above 0 and at most 1, found 15"),
    ],
)
def test_other_settings_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        KBest(**settings)


def test_a_rule_that_asks_for_nonsense_is_told():
    view = DummyFederation(speakers=3).view("s00")
    with pytest.raises(RuleError, match="the rule asked for the best models: k has to be a whole"):
        view.best(["s01", "s02"], k=0)
    with pytest.raises(RuleError, match="the rule asked s00 about an unknown speaker: zoe"):
        view.best(["s01", "zoe"], k=1)
