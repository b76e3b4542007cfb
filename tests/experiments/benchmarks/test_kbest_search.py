"""Searches are compared by the right numbers."""

import numpy as np
import pytest

from experiments.benchmarks import kbest_search
from experiments.benchmarks.confusion import Size, Table
from experiments.benchmarks.harness import Setting
from fedspeech import seeding
from strategies.kbest import KBest


@pytest.fixture
def table():
    """Eight speakers whose models differ: p makes |p - s| errors more in ten than s itself."""
    draw = seeding.generator(0, 0, "", "table")
    distance = np.abs(np.arange(8)[:, None] - np.arange(8))
    errors = draw.random((8, 8, 400)) < 0.05 + 0.1 * distance[..., None]
    return Table(errors.astype(np.int16), np.ones((8, 400), dtype=np.int64))


def test_exhaustive_and_random_peers_by_brute_force(table):
    row, _ = kbest_search.compare(table, KBest(2, search="racing"), 0, 1)
    best, drawn = [], []
    for s in range(8):
        rates = sorted(table.errors[p, s].mean() for p in range(8) if p != s)
        best.append(np.mean(rates[:2]))
        drawn.append(np.mean(rates))
    assert row["decodings"] == 8 * 7 * 400
    assert row["WER of the peers, %"] == pytest.approx(100 * np.mean(best))
    assert row["WER of random peers, %"] == pytest.approx(100 * np.mean(drawn))


def test_a_race_that_may_judge_everything_is_the_exhaustive_search(table):
    rule = KBest(2, search="racing", confidence=1 - 1e-12, budget=1.0)
    _, row = kbest_search.compare(table, rule, 0, 2)
    assert row[kbest_search.GAP]["values"] == pytest.approx([100.0, 100.0])


def test_fewer_targets_than_speakers(table):
    part = Table(table.errors[:, :3], table.words[:3])
    row, _ = kbest_search.compare(part, KBest(2, search="racing"), 0, 1)
    best = [np.sort(np.delete(table.errors[:, s].mean(1), s))[:2].mean() for s in range(3)]
    assert (row["speakers"], row["targets"], row["decodings"]) == (8, 3, 3 * 7 * 400)
    assert row["WER of the peers, %"] == pytest.approx(100 * np.mean(best))


def test_a_race_within_its_budget_recovers_most_of_the_gap(table):
    _, row = kbest_search.compare(table, KBest(2, search="racing"), 0, 3)
    assert all(share <= 15.0 for share in row[kbest_search.DECODINGS]["values"])
    assert min(row[kbest_search.GAP]["values"]) > 80.0


def test_a_table_of_real_models(tmp_path):
    pytest.importorskip("espeakng_loader")
    size = Size(2, 3, 2, utterances=4, judged=6, generic_epochs=1, epochs=1)
    rows = list(kbest_search.rows(Setting(tmp_path), kbest_search.Plan(size, ((3, 1),), (4, 6), 1)))
    assert [(row["search"], row["utterances"]) for row in rows] == [
        ("exhaustive", 4),
        ("racing", 4),
        ("exhaustive", 6),
        ("racing", 6),
    ]
    assert [row["decodings"] for row in rows[::2]] == [2 * 2 * 4, 2 * 2 * 6]
    assert all(row["speakers"] == 3 and row["targets"] == 2 for row in rows)
