"""The table, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedspeech import evaluation
from fedspeech.config import DistillationConfig
from fedspeech.config.distillation import ReplacingSettings
from fedspeech.training.distill.cells import Cell
from fedspeech.training.distill.results import Rows, assemble

ERRORS = {
    # (row, seed) -> speaker -> errors of two utterances; 4 and 6 words of a, 5 and 5 of b.
    ("teacher", 0): {"a": [0, 0], "b": [1, 0]},
    ("teacher", 1): {"a": [1, 0], "b": [0, 0]},
    ("student", 0): {"a": [2, 2], "b": [3, 1]},
    ("student", 1): {"a": [4, 4], "b": [1, 3]},
    ("lcmr", 0): {"a": [1, 1], "b": [1, 2]},
    ("lcmr", 1): {"a": [0, 2], "b": [2, 2]},
}


def judged(errors_of: dict, inheriting: tuple[str, ...] = ()) -> Rows:
    figures = {
        Cell(seed, row, row == "lcmr"): {
            "errors": errors,
            "words": {"a": [4, 6], "b": [5, 5]},
            "parameters": 400 if row == "teacher" else 200,
            "losses": [3.0 + seed, 1.0],
        }
        for (row, seed), errors in errors_of.items()
    }
    return Rows(figures, (0, 1), inheriting)


@pytest.fixture
def rows() -> Rows:
    return judged(ERRORS)


def test_rates_and_differences(rows):
    teacher, student, lcmr = (rows.row(name, {}, None) for name in rows.names)
    # Each speaker has 20 words with both seeds; errors of a and b: 1, 1; 12, 8; 4, 7.
    assert (teacher["mean"], student["mean"], lcmr["mean"]) == (5.0, 50.0, 27.5)
    assert student["seeds"] == [40.0, 60.0] and lcmr["seeds"] == [25.0, 30.0]
    assert (teacher["parameters"], lcmr["parameters"]) == (400, 200)
    assert lcmr["losses"] == [3.5, 1.0]
    assert lcmr["minus"]["student"]["mean"] == -22.5 and set(lcmr["minus"]) == {"student"}
    assert teacher["minus"]["student"]["mean"] == -45.0 and student["minus"] == {}


def test_of_two_baselines_the_later_is_compared_with_the_earlier():
    halved = {("kd", seed): ERRORS["lcmr", seed] for seed in (0, 1)}
    rows = judged(ERRORS | halved)
    found = {name: rows.row(name, {}, None)["minus"] for name in rows.names}
    assert {
        name: {other: each["mean"] for other, each in minus.items()}
        for name, minus in found.items()
    } == {
        "teacher": {"student": -45.0, "kd": -22.5},
        "student": {},
        "kd": {"student": -22.5},
        "lcmr": {"student": -22.5, "kd": 0.0},
    }
    assert found["kd"]["student"] == found["lcmr"]["student"]


def test_what_replaces_nothing_is_what_ways_to_replace_are_compared_with():
    """Where it is asked for, wherever it stands."""
    more = {("inherited", seed): ERRORS["student", seed] for seed in (0, 1)}
    rows = judged(ERRORS | more, inheriting=("inherited", "another"))
    found = {name: rows.row(name, {}, None)["minus"] for name in rows.names}
    assert {name: list(minus) for name, minus in found.items()} == {
        "teacher": ["student", "inherited"],
        "student": [],
        "lcmr": ["student", "inherited"],
        "inherited": ["student"],
    }
    assert found["lcmr"]["inherited"] == found["lcmr"]["student"]
    assert ReplacingSettings(rate=0.99).replaces and not ReplacingSettings(rate=1.0).replaces


def test_a_teacher_is_usable_with_every_seed_or_not_at_all(rows):
    """At 40 %, of 20 words; one that is not, beside one without an error, is none."""
    assert rows.usable
    limit = ERRORS | {("teacher", 0): {"a": [4, 0], "b": [4, 0]}}
    assert judged(limit).usable
    worse = limit | {("teacher", 0): {"a": [4, 1], "b": [4, 0]}}
    assert not judged(worse).usable
    without = {name: errors for name, errors in ERRORS.items() if name[0] != "teacher"}
    assert judged(without).usable is None


def test_intervals_are_those_of_resampled_seeds_speakers_and_utterances(rows):
    words = {"a": np.array([4, 6]), "b": np.array([5, 5])}
    errors = {  # of the student and of lcmr, with each seed
        "a": np.array([[[2, 2], [4, 4]], [[1, 1], [0, 2]]]),
        "b": np.array([[[3, 1], [1, 3]], [[1, 2], [2, 2]]]),
    }
    samples = evaluation.resample(errors, words, 0)
    lcmr = rows.row("lcmr", {}, None)
    assert (lcmr["low"], lcmr["high"]) == pytest.approx(
        evaluation.interval(samples[:, 1]), abs=1e-4
    )
    found = lcmr["minus"]["student"]
    paired = evaluation.interval(samples[:, 1] - samples[:, 0])
    assert (found["low"], found["high"]) == pytest.approx(paired, abs=1e-4)


def test_each_test_set_has_its_own_rates(rows):
    sets = {"clean": rows.of_set({"a"}), "other": rows.of_set({"b"})}
    row = rows.row("lcmr", sets, ReplacingSettings(rate=0.25))
    found = row["sets"]
    assert row["replacing"]["rate"] == 0.25
    assert (found["clean"]["mean"], found["other"]["mean"]) == (20.0, 35.0)
    assert found["clean"]["pooled"] == 20.0


def test_results_tell_of_what_was_left_out_and_of_ways_that_only_inherit():
    """One of strategy 1 inherits nothing."""
    ways = {"lcmr": {}, "inherited": {"rate": 1.0}, "apart": {"rate": 1.0, "strategy": 1}}
    settings = DistillationConfig.model_validate(
        {"seeds": [0, 1], "rows": ["teacher", "student", *ways], "replacing": ways}
    )
    figures = {
        Cell(seed, row, row in ("lcmr", "inherited")): {
            "errors": {"a": [1, 0]},
            "words": {"a": [4, 6]},
            "parameters": 200,
            "losses": [1.0],
        }
        for row in settings.rows
        for seed in (0, 1)
    }
    found = assemble(settings, SimpleNamespace(skipped=3, sets={}), figures)
    assert (found["skipped"], found["shipped"]) == (3, "lcmr")
    beside = {row["row"]: list(row["minus"]) for row in found["table"]}
    assert beside["lcmr"] == beside["apart"] == ["student", "inherited"]
    assert beside["inherited"] == ["student"]
