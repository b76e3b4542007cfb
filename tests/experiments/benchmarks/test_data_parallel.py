"""Two learners are measured beside one, in turns."""

import pytest
from slow import SLOW

from experiments.benchmarks import data_parallel
from experiments.benchmarks.harness import Setting

pytestmark = list(SLOW)


def test_two_learners_stand_beside_one_whatever_they_hear_at_a_time(tmp_path):
    rows = list(data_parallel.rows(Setting(tmp_path), data_parallel.QUICK))
    for size in (8, 16):
        found = {row["way"]: row for row in rows if row["utterances a batch"] == size}
        hooks = ["allreduce fp16", "allreduce powersgd"]
        assert list(found) == ["one learner", "allreduce", *hooks, "ad-psgd"]
        one = found["one learner"]["utterances/s"]["median"]
        for row in found.values():
            wanted = row["utterances/s"]["median"] / one
            assert row["/ one learner's"]["median"] == pytest.approx(wanted)
        first, *others = (row["if all is computing"] for row in found.values())
        assert first == 1 and all(0 < each < 3 for each in others)
    assert len(rows) == 10
