"""The report of a run of kind `distillation`: its tables, its figures and its page."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedspeech.errors import RunError
from fedspeech.report import distill_figures, distill_tables, show, write
from fedspeech.report.distill_results import DistillResults
from fedspeech.report.results import check
from fedspeech.report.tables import Estimate

MEANS = {"teacher": 12.0, "student": 20.0, "kd": 19.0, "<lcmr>": 15.0}


def around(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 2, "high": mean + 3}


def row(name: str) -> dict[str, Any]:
    mean = MEANS[name]
    others = {other: around(mean - MEANS[other]) for other in ("student", "kd")}
    sets = {"clean": mean - 4, "other": mean + 4}
    return {
        "row": name,
        "parameters": 40_610_000 if name == "teacher" else 21_710_000,
        **around(mean),
        "pooled": mean + 0.5,
        "seeds": [mean - 1, mean + 1],
        "sets": {key: {**around(value), "pooled": value} for key, value in sets.items()},
        "losses": [5.0, 2.0, 0.5],
        "minus": others if name == "<lcmr>" else {},
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
    assert table.columns[2:5] == ("WER %", "clean", "other")
    found = {one[0]: one[1:] for one in table.rows}
    assert list(found) == list(MEANS)
    assert found["kd"] == (
        *("21.71 M", Estimate(19, 17, 22), Estimate(15, 13, 18), Estimate(23, 21, 26)),
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


def test_rows_with_modules_replaced_stand_beside_the_baselines(results):
    table = distill_tables.differences(results)
    assert table.columns == ("model", "minus student", "minus kd")
    assert table.rows == (
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
    for part in (title, "40.61 M", "-5.00 [-7.00, -2.00]", "beside the baselines"):
        assert part in said


def test_results_that_lack_something_are_refused(made_up):
    del made_up["table"][1]["losses"]
    with pytest.raises(RunError, match=r"here: table\.1\.losses: Field required"):
        check(DistillResults, made_up, "here")
