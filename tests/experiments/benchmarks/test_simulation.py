"""Every method is simulated beside two learners that train by it."""

from typing import get_args

import pytest
from slow import SLOW

from experiments.benchmarks import simulation
from experiments.benchmarks.harness import Setting
from fedspeech.config.comparison import Way

pytestmark = list(SLOW)


def test_each_method_stands_beside_its_simulation(tmp_path):
    rows = list(simulation.rows(Setting(tmp_path), simulation.QUICK))
    assert [row["way"] for row in rows] == ["one learner", *get_args(Way)]
    assert [row["learners"] for row in rows] == [1, *[2] * len(get_args(Way))]
    for row in rows:
        measured = row["measured, s"]["median"]
        assert row["simulated / measured"] == pytest.approx(row["simulated, s"] / measured)
        # Of a few short batches, so that no more can be said of it.
        assert 1 / 3 < row["simulated / measured"] < 3
    assert len({row["simulated, s"] for row in rows}) >= 6
