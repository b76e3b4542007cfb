"""The report of a run of kind `distillation`: its tables, its figures and its page."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedspeech.errors import RunError
from fedspeech.report import distill_ablations, distill_figures, distill_tables, show, write
from fedspeech.report.distill_results import DistillResults
from fedspeech.report.results import check
from fedspeech.report.tables import Estimate
from fedspeech.report.trainings import figures_of

MEANS = {"teacher": 12.0, "student": 20.0, "kd": 19.0, "<lcmr>": 15.0}


def around(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 2, "high": mean + 3}


def row(name: str) -> dict[str, Any]:
    mean = MEANS[name]
    of = {"student": (), "kd": ("student",)}.get(name, ("student", "kd"))
    sets = {"clean": mean - 4, "other": mean + 4}
    return {
        "row": name,
        "parameters": 40_610_000 if name == "teacher" else 21_710_000,
        **around(mean),
        "pooled": mean + 0.5,
        "seeds": [mean - 1, mean + 1],
        "sets": {key: {**around(value), "pooled": value} for key, value in sets.items()},
        "losses": [5.0, 2.0, 0.5],
        "minus": {other: around(mean - MEANS[other]) for other in of},
    }


@pytest.fixture
def made_up() -> dict[str, Any]:
    return {
        "kind": "distillation",
        "name": "<made-up>",
        "seed": 3,
        "seeds": [3, 4],
        "speakers": 5,
        "skipped": 1234,
        "teacher": "rnnt-teacher-41m",
        "student": "rnnt-student-22m",
        "usable": True,
        "shipped": "<lcmr>",
        "table": [row(name) for name in MEANS],
    }


@pytest.fixture
def results(made_up) -> DistillResults:
    return check(DistillResults, made_up, "here")


def test_errors_have_every_row_with_its_size_and_each_set(results):
    table = distill_tables.errors(results)
    sets = ("clean", "clean, pooled", "other", "other, pooled")
    assert table.columns[2:7] == ("WER %", *sets)
    found = {one[0]: one[1:] for one in table.rows}
    assert list(found) == list(MEANS)
    assert found["kd"] == (
        *("21.71 M", Estimate(19, 17, 22)),
        *(Estimate(15, 13, 18), "15.00", Estimate(23, 21, 26), "23.00"),
        *("19.50", "18.00, 20.00"),
    )
    skipped, ships = table.notes
    assert "1,234" in skipped and ships.endswith("student of <lcmr> with seed 3.")


def test_a_teacher_that_is_no_recognizer_is_told(made_up):
    assert not any("no usable" in note for note in notes(made_up))
    assert any("no usable recognizer" in note for note in notes(made_up | {"usable": False}))
    assert not any("no usable" in note for note in notes(made_up | {"usable": None}))


def notes(made_up) -> tuple[str, ...]:
    return distill_tables.errors(check(DistillResults, made_up, "here")).notes


def test_rows_stand_beside_the_baselines_and_one_of_these_beside_the_other(results):
    table = distill_tables.differences(results)
    assert table.columns == ("model", "minus student", "minus kd")
    assert table.rows == (
        ("teacher", Estimate(-8, -10, -5, signed=True), Estimate(-7, -9, -4, signed=True)),
        ("kd", Estimate(-1, -3, 2, signed=True), ""),
        ("<lcmr>", Estimate(-5, -7, -2, signed=True), Estimate(-4, -6, -1, signed=True)),
    )


def test_the_figures_draw_every_row(results, made_up):
    errors, losses = distill_figures.errors(results), distill_figures.losses(results)
    assert "<lcmr> with 15.00 %" in errors.caption  # the teacher is no student
    assert len(re.findall(r'id="errors-line2d_', errors.svg)) >= 3 * len(MEANS)
    assert all(name.strip("<>") in losses.svg for name in MEANS)
    for one in made_up["table"]:
        one["losses"] = []
    assert distill_figures.losses(check(DistillResults, made_up, "here")) is None


# What several ways of replacing change.

WAYS = {
    "a": ("constant", 0.25, 40.0, 0.5, 2),
    "b": ("constant", 0.75, 40.0, 0.5, 2),
    "c": ("logarithmic", 0.25, 40.0, 0.5, 2),
    "d": ("logarithmic", 0.25, 20.0, 0.5, 2),
    "e": ("logarithmic", 0.75, 40.0, 0.5, 2),
    "f": ("linear", 0.25, 7.0, 0.5, 2),
    "lone": ("linear", 0.5, 40.0, 0.5, 1),
}
KEYS = ("schedule", "rate", "base", "phase", "strategy")


@pytest.fixture
def varied(made_up, monkeypatch) -> DistillResults:
    """Rows whose rates are 1 for a, 2 for b and so on, with those of the baselines."""
    for mean, name in enumerate(WAYS, 1):
        monkeypatch.setitem(MEANS, name, float(mean))
        replacing = dict(zip(KEYS, WAYS[name], strict=True))
        made_up["table"].append(row(name) | {"replacing": replacing})
    return check(DistillResults, made_up, "here")


@pytest.fixture
def drawn(monkeypatch) -> list[Any]:
    """What is drawn from now on: the lines and the rates that the shapes were asked for."""
    found: list[Any] = []
    for name in ("lines", "rates"):
        shape = getattr(distill_ablations, name)

        def asked(what, *rest, shape=shape):
            found.append(list(what))
            return shape(what, *rest)

        monkeypatch.setattr(distill_ablations, name, asked)
    return found


def test_a_line_for_each_schedule_goes_by_the_rates(varied, drawn):
    plot = distill_ablations.by_rate(varied)
    (lines,) = drawn
    found = {line.name: (list(line.x), list(line.y), list(line.ranges)) for line in lines}
    assert found == {
        "constant": ([0.25, 0.75], [1, 2], [(-1, 4), (0, 5)]),
        "logarithmic, base 40": ([0.25, 0.75], [3, 5], [(1, 6), (3, 8)]),
        "student": ([0.25, 0.75], [20, 20], []),
        "kd": ([0.25, 0.75], [19, 19], []),
    }
    assert "all of them: phase 0.5, strategy 2" in plot.caption
    assert ">0.25</text>" in plot.svg and "logarithmic, base 40" in plot.svg


def test_a_line_goes_by_the_bases_of_the_logarithm(varied, drawn):
    plot = distill_ablations.by_base(varied)
    (lines,) = drawn
    assert [(line.name, list(line.x), list(line.y)) for line in lines[:1]] == [
        ("modules replaced", [20, 40], [4, 3])
    ]
    assert "all of them: schedule" not in plot.caption
    assert "(all of them: logarithmic, rate 0.25, phase 0.5, strategy 2)" in plot.caption


def test_schedules_are_compared_with_those_of_the_same_rate(varied, drawn):
    distill_ablations.by_schedule(varied)
    (rates,) = drawn
    assert {rate.name: (rate.mean, rate.low, rate.high) for rate in rates} == {
        "constant, rate 0.25": (1, -1, 4),
        "logarithmic, rate 0.25": (3, 1, 6),
        "linear, rate 0.25": (6, 4, 9),
        "constant, rate 0.75": (2, 0, 5),
        "logarithmic, rate 0.75": (5, 3, 8),
        "student": (20, 18, 23),
        "kd": (19, 17, 22),
    }


def test_what_has_nothing_to_be_compared_with_is_not_drawn(made_up, results):
    one = dict(zip(KEYS, WAYS["c"], strict=True))
    made_up["table"][-1]["replacing"] = one
    single = check(DistillResults, made_up, "here")
    for figure in ("by_rate", "by_base", "by_schedule"):
        assert getattr(distill_ablations, figure)(results) is None
        assert getattr(distill_ablations, figure)(single) is None


def test_the_page_has_the_figures_of_what_was_varied(made_up, varied, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(made_up))
    text = write(tmp_path).read_text()
    drawn = [plot.svg for plot in figures_of(varied, {}).values() if plot]
    assert all(svg in text for svg in drawn)
    assert text.count("<svg") == len(drawn) == 5 and text.count("Ways to replace") == 1
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_page_is_whole_escaped_and_the_same_each_time(made_up, tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps(made_up))
    page = write(tmp_path).read_bytes()
    assert write(tmp_path).read_bytes() == page
    text = page.decode()
    assert "&lt;made-up&gt;" in text and "<made-up>" not in text and "<lcmr>" not in text
    assert text.count("<svg") == text.count("</svg>") == 2
    assert "minus student" in text and "$" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_terminal_shows_all_tables(made_up):
    console = Console(file=io.StringIO(), width=200)
    show(made_up, console)
    said = console.file.getvalue()
    title = "<made-up>: rnnt-student-22m out of rnnt-teacher-41m, seeds 3, 4"
    for part in (title, "40.61 M", "-5.00 [-7.00, -2.00]", "Beside the baselines"):
        assert part in said


def test_results_that_lack_something_are_refused(made_up):
    del made_up["table"][1]["losses"]
    with pytest.raises(RunError, match=r"here: table\.1\.losses: Field required"):
        check(DistillResults, made_up, "here")
