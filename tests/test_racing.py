"""Races on tables of errors: by hand, against the exhaustive search, and on simulated speakers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedspeech import racing
from fedspeech.racing import Rung


def names(count: int) -> list[str]:
    return [f"c{i:03}" for i in range(count)]


def run(table, k, budget=1.0, confidence=0.95, seed=0, words=None, log=None):
    """A race on a table of errors, int (candidates, utterances)."""

    def errors(asked, utterances):
        if log is not None:
            log.append((list(asked), utterances.tolist()))
        return table[[int(name[1:]) for name in asked]][:, utterances]

    words = np.full(table.shape[1], 10) if words is None else words
    draw = np.random.default_rng(seed)
    return racing.race(names(len(table))[::-1], k, words, errors, draw, confidence, budget)


def order(utterances: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(utterances)


def best(table, k) -> list[str]:
    """The exhaustive search; of equal ones the first by name."""
    return sorted(names(len(table)), key=lambda name: (table[int(name[1:])].sum(), name))[:k]


# By hand.


def test_the_rungs_are_those_of_the_budget():
    """160 decodings: 16 * 3 + 9 * 3 + 5 * 6 + 2 * 12 = 129 are within it; with 10 candidates after
    the first rung it would be 16 * 3 + 10 * 3 + 6 * 6 + 3 * 12 + 2 * 24 = 198."""
    assert racing.ladder(16, 1, 50, 0.2) == [Rung(3, 9), Rung(6, 5), Rung(12, 2), Rung(24, 1)]


def test_with_the_whole_budget_nobody_is_cut_off_before_the_end():
    rungs = racing.ladder(40, 5, 100, 1.0)
    assert rungs == [*(Rung(u, 40) for u in (6, 12, 24, 48, 96)), Rung(100, 5)]


@pytest.mark.parametrize(
    ("utterances", "budget", "expected"),
    [
        (3, 1.0, [Rung(1, 5), Rung(2, 5), Rung(3, 2)]),
        (1, 1.0, [Rung(1, 2)]),
        (3, 0.15, [Rung(1, 2)]),  # one utterance for each candidate, whatever the budget
        (1, 0.001, [Rung(1, 2)]),
    ],
)
def test_few_utterances_make_few_rungs(utterances, budget, expected):
    assert racing.ladder(5, 2, utterances, budget) == expected


def test_the_budget_cuts_a_race_by_hand():
    """Rungs (2, 6), (4, 4), (8, 3), (16, 2): on every two utterances c00i makes i errors but for
    c007, which makes 9 on the first two and none from then on: it is cut off before that shows."""
    first = order(40)[:2]
    table = np.zeros((8, 40), dtype=np.int64)
    table[:, order(40)[::2]] = np.arange(8)[:, None]
    table[7] = 0
    table[7, first] = 5, 4
    log = []
    race = run(table, 2, budget=0.25, confidence=1 - 1e-12, log=log)
    assert [(len(asked), len(heard)) for asked, heard in log] == [(8, 2), (6, 2), (4, 4), (3, 8)]
    assert log[0] == (names(8), first.tolist())
    assert race.kept == ("c000", "c001")
    assert race.errors == {
        **{"c000": 0, "c001": 8, "c002": 16, "c003": 12},
        **{"c004": 8, "c005": 10, "c006": 6, "c007": 9},
    }
    words = dict(zip(names(8), (160, 160, 160, 80, 40, 40, 20, 20), strict=True))
    assert race.words == words
    assert (race.decodings, race.exhaustive) == (sum(words.values()) // 10, 320)
    assert not race.confident
    assert best(table, 2) == ["c000", "c007"]


def test_the_bound_by_hand():
    """After 4 of 64 utterances c001 has made 1, 2, 1 and 1 errors more: a sum of 5, squares of 7.
    There are 5 rungs and one pair: 5 > sqrt(2 ln(5 / (1 - confidence)) * 7 * (1 - 4 / 64)) below
    0.255710."""
    table = np.zeros((2, 64), dtype=np.int64)
    table[1, order(64)[:4]] = 1, 2, 1, 1
    limit = 1 - 5 * math.exp(-(5**2) / (2 * 7 * 60 / 64))
    assert limit == pytest.approx(0.255710, abs=1e-6)
    race = run(table, 1, confidence=limit - 1e-6)
    assert (race.kept, race.decodings, race.confident) == (("c000",), 8, True)
    assert run(table, 1, confidence=limit + 1e-6).decodings > 8


def test_every_pair_and_rung_is_a_test_of_its_own():
    """As above, but 5 candidates and k = 2: 5 rungs and 2 * 3 pairs make 30 tests of each of which
    little may go wrong; c002 … c004 are 3 worse than the others on each of 8 utterances."""
    table = np.zeros((5, 64), dtype=np.int64)
    table[2:] = 3
    limit = 1 - 30 * math.exp(-(24**2) / (2 * 72 * 56 / 64))
    assert 0.5 < limit < 0.7
    assert run(table, 2, confidence=limit - 1e-6).decodings == 5 * 8
    assert run(table, 2, confidence=limit + 1e-6).decodings == 5 * 16


def test_differences_are_paired():
    """A hard utterance is hard for all: what varies is not the difference."""
    hard = np.random.default_rng(1).integers(0, 50, 64)
    table = np.stack([hard, hard + 1])
    assert run(table, 1).decodings == 2 * 16  # 16 times the same is beyond chance


def test_a_candidate_is_dropped_only_if_it_is_worse_than_each_of_the_k():
    """c002 is far worse than c000 and hardly worse than c001."""
    table = np.zeros((3, 64), dtype=np.int64)
    table[1], table[2] = np.tile([4, 6], 32), np.tile([6, 4], 32)
    table[2, order(64)[-1]] += 1
    assert run(table, 1).decodings < 3 * 64
    race = run(table, 2)
    assert (race.kept, race.decodings) == (("c000", "c001"), 3 * 64)


def test_of_equal_candidates_the_first_by_name_is_kept():
    for budget in (0.15, 1.0):
        assert run(np.ones((9, 30), dtype=np.int64), 3, budget).kept == ("c000", "c001", "c002")


def test_as_many_as_are_wanted_need_no_race():
    log = []
    for k in (3, 4):
        race = run(np.arange(15).reshape(3, 5), k, log=log)
        assert race.kept == ("c000", "c001", "c002")
        assert (race.decodings, race.exhaustive, race.confident) == (0, 15, True)
        assert race.errors == race.words == dict.fromkeys(race.kept, 0)
    assert log == []


@pytest.mark.parametrize(
    ("k", "confidence", "budget", "told"),
    [
        (0, 0.9, 0.5, "k has to be a whole number of at least 1, found 0"),
        (True, 0.9, 0.5, "k has to be a whole number of at least 1, found True"),
        (1, 1.0, 0.5, "confidence has to be between 0 and 1, found 1.0"),
        (1, "0.9", 0.5, "confidence has to be between 0 and 1, found '0.9'"),
        (1, math.nan, 0.5, "confidence has to be between 0 and 1, found nan"),
        (1, 0.9, 0, "budget has to be above 0 and at most 1, found 0"),
        (1, 0.9, 1.5, "budget has to be above 0 and at most 1, found 1.5"),
    ],
)
def test_settings_that_make_no_race_are_told(k, confidence, budget, told):
    with pytest.raises(ValueError, match=told):
        run(np.zeros((3, 5), dtype=np.int64), k, budget, confidence)


# Against the exhaustive search.


@st.composite
def tables(draw):
    """Errors of up to 30 candidates on up to 40 utterances, and some k below their number."""
    shape = draw(st.integers(2, 30)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    table = random.poisson(random.uniform(0, 2, (shape[0], 1)), shape)
    return table, draw(st.integers(1, shape[0] - 1))


@given(tables(), st.integers(0, 99))
def test_with_the_whole_budget_and_all_confidence_it_is_the_exhaustive_search(case, seed):
    table, k = case
    race = run(table, k, 1.0, 1 - 1e-12, seed)
    assert set(race.kept) == set(best(table, k))
    assert race.confident
    on_all = {name for name, words in race.words.items() if words == 10 * table.shape[1]}
    assert {n: race.errors[n] for n in on_all} == {n: table[int(n[1:])].sum() for n in on_all}


@given(tables(), st.floats(0.001, 1), st.floats(0.01, 0.999), st.integers(0, 99))
def test_what_every_race_keeps_to(case, budget, confidence, seed):
    table, k = case
    count, utterances = table.shape
    words = np.random.default_rng(seed).integers(1, 9, utterances)
    log = []
    race = run(table, k, budget, confidence, seed, words, log)
    # The budget.
    assert race.decodings <= max(count, budget * race.exhaustive)
    assert race.decodings == sum(len(asked) * len(heard) for asked, heard in log)
    # What it tells.
    assert len(set(race.kept)) == len(race.kept) == k
    heard = {name: [u for asked, new in log if name in asked for u in new] for name in names(count)}
    assert race.errors == {n: table[int(n[1:])][u].sum() for n, u in heard.items()}
    assert race.words == {name: words[u].sum() for name, u in heard.items()}
    # Common utterances, and the best so far among those that go on.
    assert all(u == order(utterances, seed)[: len(u)].tolist() for u in heard.values())
    longest = max(map(len, heard.values()))
    assert all(len(heard[name]) == longest for name in race.kept)
    ranks = [(race.errors[name], name) for name in race.kept]
    assert ranks == sorted(ranks)
    # Again.
    assert run(table, k, budget, confidence, seed, words) == race


@given(tables(), st.floats(0.001, 1), st.floats(0.01, 0.999), st.integers(0, 99))
def test_after_the_first_rung_only_the_best_of_it_are_needed(case, budget, confidence, seed):
    """So a device can forget candidates as they come."""
    table, k = case
    draw = np.random.default_rng(seed)
    first, survivors = racing.first_rung(len(table), k, table.shape[1], draw, budget)
    log = []
    run(table, k, budget, confidence, seed, log=log)
    assert log[0] == (names(len(table)), first.tolist())
    later = {name for asked, _ in log[1:] for name in asked}
    assert later <= set(best(table[:, first], survivors))


def test_who_is_dropped_by_confidence_makes_room_for_nobody():
    """Otherwise a device would need a candidate that it could have forgotten."""
    first, survivors = racing.first_rung(6, 1, 256, np.random.default_rng(0), 0.5)
    table = np.zeros((6, 256), dtype=np.int64)
    table[1:survivors, first] = 1  # surely worse than c000
    table[survivors:, first[0]] = len(first) + 1  # more errors, but all on one utterance
    log = []
    race = run(table, 1, 0.5, 0.9, log=log)
    assert 1 < survivors < 6
    assert (race.kept, race.confident, len(log)) == (("c000",), False, 1)


# On simulated speakers.


def speaker(draw, candidates, utterances, words, level, spread, clusters=12, common=0.5):
    """Errors (candidates, utterances) of one speaker, and words (utterances,).

    Speakers lie in clusters; the farther a candidate, the more words it gets wrong, around the
    `level`. Some utterances are hard, and the same words are hard, for all: a share `common` of
    what decides over a word is the same for all candidates.
    """
    said = draw.integers(words[0], words[1] + 1, utterances)
    centres = draw.normal(size=(clusters, 6))
    here = centres[0] + 0.3 * draw.normal(size=6)
    there = centres[draw.integers(clusters, size=candidates)]
    there += 0.3 * draw.normal(size=(candidates, 6))
    apart = np.linalg.norm(there - here, axis=1)
    skill = level + spread * (apart - apart.mean()) / apart.std()
    hard = np.repeat(0.8 * draw.normal(size=utterances), said)
    word = math.sqrt(common) * draw.normal(size=said.sum())
    own = math.sqrt(1 - common) * draw.normal(size=(candidates, said.sum()))
    wrong = skill[:, None] + hard + word + own > 0
    starts = np.cumsum(said) - said
    return np.add.reduceat(wrong.astype(np.int64), starts, axis=1), said


SHAPES = {
    "commands": {"utterances": 280, "words": (1, 1), "level": -0.8, "spread": 0.6},
    "short sentences": {"utterances": 100, "words": (1, 8), "level": -0.8, "spread": 0.5},
    "few utterances": {"utterances": 60, "words": (1, 8), "level": -0.8, "spread": 0.5},
    "a talk": {"utterances": 40, "words": (10, 30), "level": -0.8, "spread": 0.4},
    "hard to recognize": {"utterances": 100, "words": (1, 8), "level": 0.3, "spread": 0.5},
    "easy to recognize": {"utterances": 100, "words": (1, 8), "level": -2.0, "spread": 0.5},
    "nearly alike": {"utterances": 100, "words": (1, 8), "level": -0.8, "spread": 0.25},
    "four accents": {
        "utterances": 100,
        "words": (1, 8),
        "level": -0.8,
        "spread": 0.5,
        "clusters": 4,
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_seventh_of_the_decodings_finds_nine_tenths_of_the_gap(shape):
    """Among 300 speakers, k = 10: the gap in WER between random peers and the exhaustive set."""
    draw = np.random.default_rng(7)
    recovered, used = [], []
    for seed in range(8):
        table, words = speaker(draw, 299, **SHAPES[shape])
        race = run(table, 10, 0.15, seed=seed, words=words)
        rate = table.sum(1) / words.sum()
        kept = np.mean([rate[int(name[1:])] for name in race.kept])
        exhaustive = np.sort(rate)[:10].mean()
        recovered.append((rate.mean() - kept) / (rate.mean() - exhaustive))
        used.append(race.decodings / race.exhaustive)
    assert max(used) <= 0.15
    assert np.mean(recovered) >= 0.9


def test_with_the_whole_budget_clear_cases_need_far_less():
    draw = np.random.default_rng(3)
    for shape in ("commands", "hard to recognize"):
        table, words = speaker(draw, 299, **SHAPES[shape])
        race = run(table, 10, 1.0, 0.95, words=words)
        assert set(race.kept) == set(best(table, 10)) and race.confident
        assert race.decodings < 0.6 * race.exhaustive


def alike(draw, candidates, utterances, words, rate, spread, failures=0.0):
    """Candidates of nearly the same WER; some fail on whole utterances now and then instead."""
    said = draw.integers(words[0], words[1] + 1, utterances)
    fails = failures * draw.uniform(0, 2, (candidates, 1))
    rates = rate + spread * draw.normal(size=(candidates, 1)) - fails
    wrong = draw.binomial(said, np.clip(rates, 0, 1), (candidates, utterances))
    return np.where(draw.random((candidates, utterances)) < fails, said, wrong)


CLOSE = {
    "coins": (1, {"candidates": 2, "utterances": 64, "words": (1, 1), "rate": 0.5, "spread": 0.0}),
    "two": (1, {"candidates": 2, "utterances": 40, "words": (1, 1), "rate": 0.3, "spread": 0.05}),
    "few": (1, {"candidates": 10, "utterances": 20, "words": (1, 2), "rate": 0.5, "spread": 0.3}),
    "some": (5, {"candidates": 20, "utterances": 30, "words": (1, 1), "rate": 0.5, "spread": 0.2}),
    "many": (5, {"candidates": 80, "utterances": 64, "words": (1, 8), "rate": 0.3, "spread": 0.1}),
    "failing": (
        2,
        {
            **{"candidates": 10, "utterances": 120, "words": (1, 20)},
            **{"rate": 0.2, "spread": 0.05, "failures": 0.06},
        },
    ),
}


@pytest.mark.parametrize("confidence", [0.8, 0.98])
@pytest.mark.parametrize("case", CLOSE)
def test_confidence_drops_wrongly_no_oftener_than_it_says(case, confidence):
    """Wrong: a candidate that the exhaustive search keeps was dropped before the end."""
    k, shape = CLOSE[case]
    draw = np.random.default_rng(11)
    wrong, early, races = 0, 0, 200
    for seed in range(races):
        table = alike(draw, **shape)
        race = run(table, k, 1.0, confidence, seed)
        totals = table.sum(1)
        kept = sum(totals[int(name[1:])] for name in race.kept)
        wrong += kept > np.sort(totals)[:k].sum()
        early += race.decodings < race.exhaustive
    assert wrong <= (1 - confidence) * races
    assert early > (0.2 * races if shape["spread"] else 0)  # and it does drop


def test_what_the_bound_takes_for_granted_is_needed():
    """c000 makes 70 single errors, c001 75 on three utterances: no symmetry, and no such promise.

    If this fails since the bound holds here as well, its documentation promises too little.
    """
    wrong = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        table = np.zeros((2, 280), dtype=np.int64)
        table[0, draw.choice(280, 70, replace=False)] = 1
        table[1, draw.choice(280, 3, replace=False)] = 25
        race = run(table, 1, 1.0, 0.95, seed)
        wrong += race.confident and race.kept == ("c001",)
    assert wrong > 20
