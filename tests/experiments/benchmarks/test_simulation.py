"""Methods are simulated beside two learners that train by them."""

import pytest
from slow import SLOW

from experiments.benchmarks import simulation
from experiments.benchmarks.harness import Setting
from experiments.benchmarks.simulation import EVERY, QUICK

pytestmark = list(SLOW)


def test_each_method_stands_beside_its_simulation(tmp_path):
    rows = list(simulation.rows(Setting(tmp_path), QUICK))
    assert [row["way"] for row in rows] == ["one learner", *EVERY, "one learner", "allreduce"]
    assert [row["learners"] for row in rows] == [1, *[2] * len(EVERY), 1, 2]
    for row in rows:
        measured = row["measured, s"]["median"]
        assert row["simulated / measured"] == pytest.approx(row["simulated, s"] / measured)
        # Of a few short batches, so that no more can be said of it.
        assert 1 / 3 < row["simulated / measured"] < 3
    assert len({row["simulated, s"] for row in rows}) >= 7
