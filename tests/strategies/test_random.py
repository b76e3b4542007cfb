from collections import Counter
from itertools import combinations

from scipy.stats import chisquare

from fedspeech.testing import DummyFederation
from strategies.random import Random


def drawn(seed, round=1, k=2):
    federation = DummyFederation(speakers=5, seed=0)
    federation.seed, federation.round = seed, round
    return {s: tuple(sorted(w)) for s, w in federation.peers(Random(k=k)).items()}


def test_every_pair_of_others_is_drawn_equally_often():
    counts = Counter(drawn(seed)["s02"] for seed in range(600))
    assert set(counts) == set(combinations(("s00", "s01", "s03", "s04"), 2))
    assert chisquare(list(counts.values())).pvalue > 0.01


def test_equal_seeds_draw_equal_peers_and_other_seeds_rounds_and_speakers_others():
    assert drawn(seed=3) == drawn(seed=3)
    draws = [drawn(seed, round)["s00"] for seed in range(6) for round in (1, 2)]
    assert len(set(draws)) > 3
    assert drawn(seed=3) != drawn(seed=4)
    assert drawn(seed=3, round=1) != drawn(seed=3, round=2)
