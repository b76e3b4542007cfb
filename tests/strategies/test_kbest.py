import pytest

from fedspeech.aggregation import WordErrors
from fedspeech.testing import DummyFederation
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
