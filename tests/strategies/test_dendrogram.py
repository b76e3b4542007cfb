"""Ward linkage on points of a line, where every merge can be computed by hand.

The Ward distance of two clusters is sqrt(2 |A| |B| / (|A| + |B|)) times that of their centroids.
"""

from collections import Counter
from itertools import combinations

import pytest
import torch
from scipy.stats import chisquare

from fedspeech.testing import DummyFederation
from strategies.dendrogram import Dendrogram

LINE = {"s00": 0.0, "s01": 68.75, "s02": 6.0, "s03": 1.0, "s04": 32.75, "s05": 4.0}
"""s00 and s03 join at 1, s05 and s02 at 2, these four at sqrt(2) * 4.5 = 6.4. Then s04 is 30 away
from the centroid 2.75 of the four, which is sqrt(8 / 5) * 30 = 37.9, and 36 from s01: Ward joins
s04 to s01, where single (26.75), average (30) and complete (32.75) linkage join it to the four."""


def federation(line=LINE, seed=0):
    """Speakers on a line in the first layer; every later layer puts them in another order."""
    made = DummyFederation(speakers=len(line))
    made.seed = seed
    for speaker, place in line.items():
        model = made.personal[speaker]
        for name in ("tdnn.0.bias", "tdnn.0.weight"):
            model[name] = torch.full_like(model[name], place)
        for name in ("tdnn.1.weight", "output.weight"):
            model[name] = torch.full_like(model[name], (place * 1e3) % 37)
    return made


def peers(speaker, k, line=LINE, seed=0):
    return set(federation(line, seed).peers(Dendrogram(k=k))[speaker])


@pytest.mark.parametrize(
    ("speaker", "k", "closest"),
    [
        ("s00", 1, {"s03"}),
        ("s00", 3, {"s03", "s02", "s05"}),
        ("s03", 3, {"s00", "s02", "s05"}),
        ("s02", 1, {"s05"}),
        ("s02", 5, {"s05", "s00", "s03", "s04", "s01"}),
        ("s04", 1, {"s01"}),
        ("s01", 1, {"s04"}),
    ],
)
def test_clusters_that_fit_whole_are_taken_in_the_order_of_the_merges(speaker, k, closest):
    assert peers(speaker, k) == closest


def test_what_does_not_fit_whole_is_drawn_from_the_next_cluster_only():
    for seed in range(20):
        two = peers("s00", 2, seed=seed)
        assert two in ({"s03", "s05"}, {"s03", "s02"})
        four = peers("s00", 4, seed=seed)
        assert four in ({"s03", "s05", "s02", other} for other in ("s01", "s04"))


def test_the_draw_from_the_partial_cluster_is_uniform():
    made = federation()
    counts = Counter()
    for seed in range(600):
        made.seed = seed
        taken = set(made.peers(Dendrogram(k=3), ["s04"])["s04"])
        assert "s01" in taken
        counts[tuple(sorted(taken - {"s01"}))] += 1
    assert set(counts) == set(combinations(("s00", "s02", "s03", "s05"), 2))
    assert chisquare(list(counts.values())).pvalue > 0.01


def test_the_bias_of_the_first_layer_counts_as_well():
    made = federation(dict.fromkeys(LINE, 0.0))
    for speaker, place in LINE.items():
        made.personal[speaker]["tdnn.0.bias"].fill_(place)
    assert set(made.peers(Dendrogram(k=1))["s04"]) == {"s01"}


def test_equal_models_are_no_obstacle():
    line = dict.fromkeys(LINE, 1.0)
    assert len(peers("s02", 3, line)) == 3
    assert peers("s02", 3, line) == peers("s02", 3, line)
