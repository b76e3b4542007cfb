"""The table, by hand."""

import numpy as np
import pytest

from fedspeech import evaluation
from fedspeech.training.neural_diff.cells import Cell
from fedspeech.training.neural_diff.results import Generation

ERRORS = {
    # (model, seed) -> speaker -> errors of two utterances; 4 and 6 words of a, 5 and 5 of b.
    ("BL", 0): {"a": [1, 0], "b": [0, 2]},
    ("BL", 1): {"a": [1, 0], "b": [2, 2]},
    ("BLC", 0): {"a": [4, 4], "b": [3, 3]},
    ("BLC", 1): {"a": [4, 4], "b": [5, 3]},
    ("diff", 0): {"a": [2, 1], "b": [1, 2]},
    ("diff", 1): {"a": [0, 1], "b": [2, 4]},
}


@pytest.fixture
def generation() -> Generation:
    figures = {}
    for (model, seed), errors in ERRORS.items():
        coded = ("sparse", 10.0) if model != "BL" else (None, None)
        figures[Cell(seed, 1, model, *coded)] = {
            "errors": errors,
            "words": {"a": [4, 6], "b": [5, 5]},
            "bytes": 100 + seed,
            "full": 1000,
            "sent": 0.1 + 0.02 * seed,
            "additive": ["output.weight"] if (model, seed) == ("diff", 1) else [],
        }
    return Generation(figures, (0, 1), 1)


def test_rates_regret_and_the_difference_to_blc(generation):
    bl, blc, diff = (generation.row(cell) for cell in generation.cells)
    # Each speaker has 20 words with both seeds; errors of a and b: BL 2, 6; BLC 16, 14; diff 4, 9.
    assert (bl["mean"], blc["mean"], diff["mean"]) == (20.0, 75.0, 32.5)
    assert bl["seeds"] == [15.0, 25.0] and diff["seeds"] == [30.0, 35.0]
    assert diff["pooled"] == 32.5
    assert bl["regret"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert diff["regret"]["mean"] == 12.5 and blc["regret"]["mean"] == 55.0
    assert diff["minus_blc"]["mean"] == -42.5
    assert blc["minus_blc"] is None is bl["minus_blc"]
    assert diff["bytes"] == [100, 101] and diff["sent"] == 0.11 and diff["full"] == 1000
    assert diff["additive"] == ["output.weight"] and bl["additive"] == []


def test_intervals_are_those_of_resampled_seeds_speakers_and_utterances(generation):
    words = {"a": np.array([4, 6]), "b": np.array([5, 5])}
    errors = {  # of BL and of the diff, with each seed
        "a": np.array([[[1, 0], [1, 0]], [[2, 1], [0, 1]]]),
        "b": np.array([[[0, 2], [2, 2]], [[1, 2], [2, 4]]]),
    }
    samples = evaluation.resample(errors, words, 0)
    row = generation.row(generation.cells[2])
    assert (row["low"], row["high"]) == pytest.approx(evaluation.interval(samples[:, 1]), abs=1e-4)
    paired = evaluation.interval(samples[:, 1] - samples[:, 0])
    assert (row["regret"]["low"], row["regret"]["high"]) == pytest.approx(paired, abs=1e-4)
    assert row["low"] < row["mean"] < row["high"]
