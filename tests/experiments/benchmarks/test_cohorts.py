"""Loop and cohort are given the same work, and its arithmetic is counted right."""

import pytest
import torch

from experiments.benchmarks import cohorts
from experiments.benchmarks.harness import Setting
from experiments.benchmarks.workload import Job


@pytest.fixture
def case(monkeypatch):
    monkeypatch.setitem(cohorts.workload.SIZES, "tiny", "benchmark-tiny")
    return cohorts.Case(Job("tiny", 3, 2, 0), utterances=4, seed=0)


def test_arithmetic_by_hand(case):
    """Forth, back to the weights, and but for the first layer back to what came in."""
    frames = -(-max(len(rows) for rows in case.speech[0].features) // 3)
    first = 40 * 19 * 24
    rest = 24 * (6 * 3 * 24 + len(case.description.units))
    one_update = 2 * 4 * frames * (2 * first + 3 * rest)
    assert case.arithmetic() == one_update * case.job.speakers * case.job.epochs


def test_loop_and_cohort_fine_tune_everybody(case):
    ways = case.loop("fp32"), case.loop("bf16"), case.cohort("fp32")
    for models in ways:
        assert len(models) == 3
        for model in models:
            assert model.keys() == case.generic.keys()
            moved = (model["output.weight"] - case.generic["output.weight"]).abs().max()
            # Adam moves each value by about its rate in each of the two updates
            assert 5e-4 < moved < 2e-3


def test_products_of_the_loop_are_rounded_to_bf16_where_it_says_so(case):
    (weights, rounded) = (case.loop(how)[0]["output.weight"] for how in ("fp32", "bf16"))
    assert 1e-6 < (weights - rounded).abs().max() < 4e-3


def test_rows(monkeypatch, tmp_path):
    monkeypatch.setitem(cohorts.workload.SIZES, "tiny", "benchmark-tiny")
    threads = torch.get_num_threads()
    plan = cohorts.Plan((Job("tiny", 2, 1, 0),), utterances=3, repeats=2)
    fp32, bf16 = cohorts.rows(Setting(tmp_path), plan)
    assert (fp32["precision"], bf16["precision"]) == ("fp32", "bf16")
    loop, cohort = (fp32[f"{way}, speakers per second"]["values"] for way in ("loop", "cohort"))
    expected = [above / below for above, below in zip(cohort, loop, strict=True)]
    assert fp32["/ the loop's speed"]["values"] == pytest.approx(expected)
    assert torch.get_num_threads() == threads
