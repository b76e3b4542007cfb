"""Learners are measured in turns, and the simulation stands beside what it is of."""

import pytest
from slow import SLOW

from experiments.benchmarks import data_parallel
from experiments.benchmarks.data_parallel import SIMULATED, TWO
from experiments.benchmarks.harness import Setting

pytestmark = list(SLOW)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    setting = Setting(tmp_path_factory.mktemp("data-parallel"))
    return list(data_parallel.rows(setting, data_parallel.QUICK))


def of(rows, table, size=None):
    return {
        row["way"]: row
        for row in rows
        if row["table"] == table and size in (None, row.get("utterances a batch"))
    }


def test_two_learners_stand_beside_one_whatever_they_hear_at_a_time(rows):
    for size in (8, 16):
        found = of(rows, TWO, size)
        hooks = ["allreduce fp16", "allreduce powersgd"]
        assert list(found) == ["one learner", "allreduce", *hooks, "ad-psgd"]
        one = found["one learner"]["utterances/s"]["median"]
        for row in found.values():
            wanted = row["utterances/s"]["median"] / one
            assert row["/ one learner's"]["median"] == pytest.approx(wanted)
        first, *others = (row["if all is computing"] for row in found.values())
        assert first == 1 and all(0 < each < 3 for each in others)


@pytest.mark.parametrize("size", [8, 16])
def test_simulated_seconds_stand_beside_measured_ones(rows, size):
    found = of(rows, SIMULATED, size)
    assert list(found) == ["one learner", "allreduce", "ad-psgd"]
    for way, row in found.items():
        measured = row["measured, s"]["median"]
        assert row["simulated / measured"] == pytest.approx(row["simulated, s"] / measured)
        if way != "ad-psgd":  # whose learners are in two epochs at once
            # As many utterances in a second as the other table has.
            heard = of(rows, TWO, size)[way]["utterances/s"]["median"] * measured
            assert heard == pytest.approx(6 * size)
    # Of a few short batches, so that no more can be said of it.
    assert all(1 / 3 < row["simulated / measured"] < 3 for row in found.values())
