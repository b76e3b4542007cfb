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


def test_a_race_within_its_budget_recovers_most_of_the_gap(table):
    _, row = kbest_search.compare(table, KBest(2, search="racing"), 0, 3)
    assert all(share <= 15.0 for share in row[kbest_search.DECODINGS]["values"])
    assert min(row[kbest_search.GAP]["values"]) > 80.0


def test_a_table_of_real_models(tmp_path):
    pytest.importorskip("espeakng_loader")
    plan = kbest_search.Plan(Size(2, 3, 4, generic_epochs=1, epochs=1), ((3, 1),), 1)
    rows = list(kbest_search.rows(Setting(tmp_path), plan))
    assert [row["search"] for row in rows] == ["exhaustive", "racing"]
    assert rows[0]["decodings"] == 3 * 2 * 4
