"""A straggler among four learners, and the same learners without one."""

import pytest
from slow import SLOW

from experiments.benchmarks import straggler
from experiments.benchmarks.harness import Setting

pytestmark = list(SLOW)


def test_a_straggler_stands_beside_the_same_learners_without_one(tmp_path):
    found = {row["way"]: row for row in straggler.rows(Setting(tmp_path), straggler.QUICK)}
    for row in found.values():
        wanted = row["with straggler"]["median"] / row["utterances/s"]["median"]
        assert row["kept"]["median"] == pytest.approx(wanted)
    assert found["allreduce"]["kept"]["median"] < 0.5
    # Three at their pace and one at a tenth of it; and all at a tenth.
    beside = {way: row["if all is computing"] for way, row in found.items()}
    assert beside == pytest.approx({"allreduce": 0.1, "ad-psgd": 0.775})
