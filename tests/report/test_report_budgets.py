"""WER against bytes: the table, the grids and the figure hold what the results say."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedspeech import report
from fedspeech.report import budgets
from fedspeech.report.results import Results, check
from fedspeech.report.tables import CHOSEN, Estimate

ALPHAS = (0.0, 0.5, 1.0, "chosen")
SIZES = {None: 5_300_000, "10x": 529_800, "40x": 132_400}


def row(base: str, budget: str | None, wer: float, alphas: tuple[Any, ...] = ALPHAS) -> dict:
    """A base within a budget; the WER at alpha number i is wer + i."""
    change = {"mean": wer - 10, "low": wer - 11, "high": wer - 9}
    cells = [
        {"alpha": alpha, "mean": wer + i, "pooled": wer, "low": wer - 1, "high": wer + i + 2}
        for i, alpha in enumerate(alphas)
    ]
    return {
        "base": base,
        "budget": budget,
        "bytes": SIZES[budget] if base != "generic" else 0.0,
        "most_bytes": SIZES[budget] + 7,
        "lost": {None: 0.0, "10x": 0.0123, "40x": 0.25}[budget],
        "table": [{**cell, "change": change} for cell in cells],
    }


@pytest.fixture
def budgeted(results: dict[str, Any]) -> dict[str, Any]:
    """Two bases within two budgets, beside what is pushed whole."""
    results["budgets"] = [
        row("generic", None, 20.0),
        *(row("mean", at, wer) for at, wer in ((None, 10.0), ("10x", 10.25), ("40x", 12.5))),
        *(row("kbest", at, wer) for at, wer in ((None, 9.0), ("10x", 9.5), ("40x", 11.0))),
    ]
    return results


def test_tensors_that_fell_back_are_named(budgeted: dict[str, Any]) -> None:
    before = budgets.table(check(Results, budgeted, "here")).notes
    budgeted["budgets"][2]["additive"] = ["b.weight", "a.weight"]
    *notes, last = budgets.table(check(Results, budgeted, "here")).notes
    assert tuple(notes) == before
    said = "additive, for |value| times a sum moves no zeros: a.weight, b.weight"
    assert last == f"mean at 10x: {said}"


def test_the_table_tells_what_the_devices_chose(budgeted: dict[str, Any]) -> None:
    table = budgets.table(check(Results, budgeted, "here"))
    assert [row[:2] for row in table.rows] == [
        ("generic", "whole"),
        *(("mean", at) for at in ("whole", "10x", "40x")),
        *(("kbest", at) for at in ("whole", "10x", "40x")),
    ]
    assert table.notes[1] == budgets.CHOSEN_NOTE
    assert table.rows[2][2:4] == ("529.8 kB", "1.23")
    assert table.rows[2][4:] == (
        Estimate(13.25, 9.25, 15.25),
        Estimate(0.25, -0.75, 1.25, signed=True),
    )


def test_where_no_device_chooses_the_best_alpha_is_told(budgeted: dict[str, Any]) -> None:
    budgeted["budgets"] = [row("mean", None, 10.0, ALPHAS[:3])]
    table = budgets.table(check(Results, budgeted, "here"))
    ((base, at, *_, wer, _),) = table.rows
    assert (base, at, wer) == ("mean", "whole", Estimate(10.0, 9.0, 12.0))
    assert table.notes[1] == budgets.BEST_NOTE


def test_each_base_has_its_whole_table_with_a_column_for_each_budget(
    budgeted: dict[str, Any],
) -> None:
    generic, mean, kbest = budgets.grids(check(Results, budgeted, "here"))
    assert mean.columns == kbest.columns == ("alpha", "whole", "10x", "40x")
    assert generic.columns == ("alpha", "whole")
    assert [row[0] for row in mean.rows] == ["0", "0.5", "1", CHOSEN]
    assert [cell.mean for cell in mean.rows[1][1:]] == [11.0, 11.25, 13.5]  # type: ignore[union-attr]


def test_the_figure_draws_bytes_on_a_logarithmic_axis(budgeted: dict[str, Any]) -> None:
    plot = budgets.wer_against_bytes(check(Results, budgeted, "here"))
    assert plot is not None
    marks = []
    for base in ("mean", "kbest"):
        found = rf'<use [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*fill: var\(--{base}\)'
        marks.append(
            np.array(re.findall(found, plot.svg), dtype=float)[1:4]
        )  # the first is the band
    drawn = np.concatenate(marks)
    sizes = [SIZES[at] for at in ("40x", "10x", None)] * 2
    wer = [15.5, 13.25, 13.0, 14.0, 12.5, 12.0]
    for values, axis in ((np.log(sizes), drawn[:, 0]), (np.array(wer), drawn[:, 1])):
        slope, offset = np.polyfit(values, axis, 1)
        assert abs(slope) > 1
        np.testing.assert_allclose(axis, slope * values + offset, atol=2e-3)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", plot.svg)
    assert {"132", "530", "5,300", "kB of one push of M_s (logarithmic)"} <= set(texts)
    assert "132.4 kB of 5.3 MB (mean), changes the WER by +2.50 points" in plot.caption


def test_page_and_terminal_have_them_where_there_are_budgets(
    folder: Path, budgeted: dict[str, Any]
) -> None:
    assert "WER against bytes" not in report.write(folder).read_text(encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(budgeted), encoding="utf-8")
    page = report.write(folder).read_text(encoding="utf-8")
    for text in ("WER against bytes", "Every mix within every budget", "WER % of every mix with"):
        assert text in page
    console = Console(record=True, width=80)
    report.show(budgeted, console)
    (line,) = re.findall(r"^kbest +40x .*", console.export_text(), re.MULTILINE)
    assert line.split() == [
        "kbest",
        "40x",
        "132.4",
        "kB",
        "25.00",
        "14.00",
        "[10.00,",
        "16.00]",
        "+1.00",
        "[+0.00,",
        "+2.00]",
    ]
