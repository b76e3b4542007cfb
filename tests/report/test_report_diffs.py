"""The report of a run of kind `neural-diff`: its tables, its figures and its page."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedspeech.errors import RunError
from fedspeech.report import diff_figures, diff_tables, show, write
from fedspeech.report.diff_results import DiffResults
from fedspeech.report.results import check
from fedspeech.report.run_folder import parse
from fedspeech.report.tables import Estimate
from fedspeech.report.trainings import figures_of

FULL = 1_000_000
MEANS = {"BL": (40, 30, 20), "BL∞": (None, 40, 41), "diff": (None, 34, 25), "BLC": (None, 60, 50)}
SIZES = {"BL": FULL, "BL∞": 0, "diff": 50_000, "BLC": 49_000}


def around(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 2, "high": mean + 3}


def row(model: str, generation: int, method: str | None, ratio: float | None) -> dict[str, Any]:
    mean = MEANS[model][generation] + (1 if method == "hash" else 0)
    regret = mean - MEANS["BL"][generation]
    beside = MEANS["diff"][generation] - MEANS["BLC"][generation] if model == "diff" else None
    return {
        "model": model,
        "method": method,
        "ratio": ratio,
        "generation": generation,
        **around(mean),
        "pooled": mean,
        "seeds": [mean - 1, mean + 1],
        "bytes": [SIZES[model], SIZES[model] + 2000 * generation],
        "full": FULL,
        "sent": 0.1 if ratio else 1.0,
        "regret": around(regret),
        "minus_blc": None if beside is None else around(beside),
    }


@pytest.fixture
def made_up() -> dict[str, Any]:
    table = [row("BL", 0, None, None)]
    for t in (1, 2):
        pairs = [(method, ratio) for method in ("sparse", "hash") for ratio in (20.0, 40.0)]
        table += [row(model, t, *pair) for pair in pairs for model in ("diff", "BLC")]
        table += [row(model, t, None, None) for model in ("BL", "BL∞")]
    return {
        "kind": "neural-diff",
        "name": "<made-up>",
        "metric": "WER",
        "seed": 3,
        "seeds": [3, 4],
        "speakers": 5,
        "generations": [{"label": "50 %"}, {"label": "80 %"}, {"label": "100 %"}],
        "table": table,
    }


@pytest.fixture
def results(made_up) -> DiffResults:
    return check(DiffResults, made_up, "here")


def cells(table) -> dict[str, tuple]:
    return {one[0]: one[1:] for one in table.rows}


def test_errors_have_a_line_of_each_kind_and_a_column_for_each_generation(results):
    table = diff_tables.errors(results)
    assert table.columns == ("model", "0: 50 %", "1: 80 %", "2: 100 %")
    found = cells(table)
    assert [one.mean for one in found["BL"]] == [40, 30, 20]
    assert found["BL∞"][0] == "" and found["diff hash 40x"][2] == Estimate(26, 24, 29)
    assert len(found) == 2 + 2 * 2 * 2


def test_regret_leaves_bl_out_and_is_signed(results):
    found = cells(diff_tables.regret(results))
    assert "BL" not in found
    assert found["BL∞"][2] == Estimate(21, 19, 24, signed=True)
    assert found["diff sparse 20x"][1:] == (
        Estimate(4, 2, 7, signed=True),
        Estimate(5, 3, 8, signed=True),
    )


def test_diffs_stand_beside_the_blc_of_their_kind(results):
    found = cells(diff_tables.minus_blc(results))
    assert set(found) == {f"diff {m} {r}x" for m in ("sparse", "hash") for r in (20, 40)}
    assert [one.mean for one in found["diff sparse 40x"][1:]] == [-26, -25]


def test_bytes_are_counted_both_ways(results):
    found = cells(diff_tables.sizes(results))
    # The largest container of the line decides: 50,000 + 2 * 2,000 bytes.
    assert found["diff sparse 20x"] == ("50.0 kB to 54.0 kB", "18.5x", "10.0x")
    assert not {"BL", "BL∞"} & set(found)


def test_matrices_that_fell_back_are_named(made_up, tmp_path):
    def notes() -> tuple[str, ...]:
        return diff_tables.sizes(check(DiffResults, made_up, "here")).notes

    before = notes()
    for one in made_up["table"]:
        if (one["model"], one["method"], one["ratio"]) == ("diff", "hash", 20.0):
            one["additive"] = ["b.weight", "a.weight"][: one["generation"]]
    said = "diff hash 20x: additive, for |value| times a sum moves no zeros: a.weight, b.weight"
    assert notes() == (*before, said)
    (tmp_path / "results.json").write_text(json.dumps(made_up))
    assert said in write(tmp_path).read_text()
    console = Console(file=io.StringIO(), width=200)
    show(made_up, console)
    assert said in console.file.getvalue()


def test_the_figures_draw_every_line_once_in_each_panel(results):
    errors, regret = diff_figures.errors(results), diff_figures.regret(results)
    for plot, more in ((errors, 2), (regret, 0)):
        # Two ratios, a panel each with two diffs and two BLC; BL and BL∞ in both.
        assert len(re.findall(r'id="[^"]*-line2d_', plot.svg)) >= 2 * (4 + more)
        assert "20x" in plot.svg and "40x" in plot.svg
    assert "BL∞) has 41.00 %" in errors.caption and "(BL) 20.00 %" in errors.caption
    assert "in 8 of 8 cases" in regret.caption


def test_the_page_is_whole_escaped_and_the_same_each_time(made_up, tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps(made_up))
    page = write(tmp_path).read_bytes()
    assert write(tmp_path).read_bytes() == page
    text = page.decode()
    assert "&lt;made-up&gt;" in text and "<made-up>" not in text
    assert text.count("<svg") == text.count("</svg>") == 2
    drawn = figures_of(parse(made_up, "here"), {})
    assert all(plot and plot.svg in text for plot in drawn.values()) and len(drawn) == 2
    assert "Diff minus BLC" in text and "$" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_terminal_shows_all_tables(made_up):
    console = Console(file=io.StringIO(), width=200)
    show(made_up, console)
    said = console.file.getvalue()
    for title in ("<made-up>: 3 generations, seeds 3, 4", "WER %", "Regret", "What is sent"):
        assert title in said
    assert "-26.00 [-28.00, -23.00]" in said


def test_results_that_lack_something_are_refused(made_up):
    del made_up["table"][0]["regret"]
    with pytest.raises(RunError, match=r"here: table\.0\.regret: Field required"):
        check(DiffResults, made_up, "here")
