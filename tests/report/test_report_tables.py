"""The tables hold the numbers of the results, and say which of them were picked on test_s."""

from typing import Any

import pytest

from fedspeech.report import markup, run_tables, tables
from fedspeech.report.results import Results, check
from fedspeech.report.run_folder import LedgerRow
from fedspeech.report.tables import CHOSEN, Estimate, Table


def _three(row: dict[str, Any]) -> tuple[float, float, float]:
    return row["mean"], row["low"], row["high"]


def _estimate(cell: object) -> tuple[float, float, float]:
    assert isinstance(cell, Estimate)
    return cell.mean, cell.low, cell.high


def test_table_1_has_a_column_per_part(results: dict[str, Any]) -> None:
    table = tables.corpus(check(Results, results, "here"))
    assert table.columns == ("", "generic", "development", "train_s", "test_s")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["speakers"] == ("11", "1", "8", "8")
    assert rows["utterances"] == ("1,430", "130", "1,040", "1,040")
    assert rows["words"] == ("10,021", "911", "7,288", "7,288")
    assert rows["hours"] == ("0.88", "0.08", "0.64", "0.64")
    assert [rows[name][2] for name in ("mean, s", "least, s", "most, s")] == [
        "281.2",
        "210.5",
        "300.0",
    ]


def test_table_2_has_g_p_s_and_the_paired_gain(results: dict[str, Any]) -> None:
    rows = tables.models(check(Results, results, "here")).rows
    assert [row[0] for row in rows] == ["G", "P_s", "G minus P_s, paired"]
    for row, key in zip(rows, ("generic", "personal", "gain"), strict=True):
        assert _estimate(row[1]) == _three(results[key])
    assert rows[0][2] == f"{results['generic']['pooled']:.2f}"


def test_table_3_says_how_many_decodings_each_choice_took(results: dict[str, Any]) -> None:
    before = tables.bases(check(Results, results, "here")).notes
    results["decodings"] = {
        "quick": {"used": 8, "exhaustive": 2000, "cut": 3},
        "kbest": {"used": 1500, "exhaustive": 1500, "cut": 0},
    }
    assert tables.bases(check(Results, results, "here")).notes == (
        *before,
        "kbest: 1,500 of 1,500 utterance decodings (100.0 %).",
        "quick: 8 of 2,000 utterance decodings (0.4 %); for 3 speakers the budget decided, not the "
        "confidence asked for.",
    )


def test_table_3_has_each_base_at_its_lowest_wer_and_at_the_devices_choice(
    results: dict[str, Any],
) -> None:
    table = tables.bases(check(Results, results, "here"))
    names = ["generic", "mean", "kbest", "dendrogram", "random"]
    assert [row[0] for row in table.rows] == [name for name in names for _ in range(2)]
    for number, name in enumerate(names):
        cells = [c for c in results["table"] if c["base"] == name]
        lowest = sorted((c["mean"], c["alpha"]) for c in cells if c["alpha"] != "chosen")[0]
        best, chosen = table.rows[2 * number : 2 * number + 2]
        assert (best[1], _estimate(best[2])[0]) == (f"{lowest[1]:g}", lowest[0])
        assert chosen[1] == CHOSEN
        expected = next(c for c in cells if c["alpha"] == "chosen")
        assert _estimate(chosen[2]) == _three(expected)
        paired = next(d for d in results["differences"] if d["base"] == name)
        assert _estimate(best[3]) == _three(paired)
    assert table.marked == {1, 3, 5, 7, 9}
    assert "test_s" in table.notes[0]


def test_of_equal_cells_the_compared_one_is_the_best(results: dict[str, Any]) -> None:
    for cell in results["table"]:
        cell["mean"] = 5.0
    results["differences"] = [
        {"base": "mean", "alpha": 0.7, "against": "personal", "mean": -1, "low": -2, "high": 0}
    ]
    found = check(Results, results, "here")
    best = {base: cell.alpha for base in found.bases if (cell := found.best(base))}
    assert best == {"generic": 0.0, "mean": 0.7, "kbest": 0.0, "dendrogram": 0.0, "random": 0.0}


def test_a_difference_against_g_does_not_stand_in_the_column_of_p_s(
    results: dict[str, Any],
) -> None:
    for row in results["differences"]:
        row["against"] = "generic"
    table = tables.bases(check(Results, results, "here"))
    assert [row[3] for row in table.rows] == [""] * 10


def test_the_grid_has_every_cell(results: dict[str, Any]) -> None:
    found = check(Results, results, "here")
    grid, pooled = tables.grid(found), tables.pooled(found)
    assert len(grid.rows) == 12
    for cell in results["table"]:
        alpha = CHOSEN if cell["alpha"] == "chosen" else f"{cell['alpha']:g}"
        number = [row[0] for row in grid.rows].index(alpha)
        column = grid.columns.index(cell["base"])
        assert _estimate(grid.rows[number][column]) == _three(cell)
        assert pooled.rows[number][column] == f"{cell['pooled']:.2f}"


def test_each_speaker_has_a_row(results: dict[str, Any]) -> None:
    table = tables.speakers(check(Results, results, "here"))
    assert [row[0] for row in table.rows] == [row["speaker"] for row in results["per_speaker"]]
    for row, given in zip(table.rows, results["per_speaker"], strict=True):
        assert float(str(row[5])) == pytest.approx(given["generic"] - given["personal"], abs=0.006)
        assert float(str(row[7])) == results["chosen_alpha"]["alphas"][given["speaker"]]


def test_numbers_are_written_with_two_decimals_and_no_negative_zero() -> None:
    assert Estimate(5.126, 4.0, 6.25).texts() == ("5.13", "4.00", "6.25")
    assert Estimate(-0.004, -1.5, 0.25, signed=True).texts() == ("+0.00", "-1.50", "+0.25")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (84_240_000, "84.2 MB"),
        (3 * 10**15, "3000.0 TB"),
    ],
)
def test_sizes_are_decimal(count: int, text: str) -> None:
    assert run_tables.size(count) == text


def test_the_ledger_is_summed_by_kind_and_direction() -> None:
    ledger = [
        LedgerRow(1, "a", "down", "base", 300),
        LedgerRow(1, "a", "up", "base", 40),
        LedgerRow(1, "b", "down", "base", 500),
        LedgerRow(2, "b", "down", "alphas", 40),
    ]
    assert run_tables.sent(ledger).rows == (
        ("base", "down", "2", "800 B"),
        ("alphas", "down", "1", "40 B"),
        ("base", "up", "1", "40 B"),
    )


def test_nested_values_become_dotted_keys() -> None:
    value = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}], "f": 0.12345}
    assert run_tables.flat(value) == [
        ("a.b", "1"),
        ("a.c", "1, 2"),
        ("d.0.e", "–"),
        ("f", "0.123"),
    ]


def test_who_took_part_is_summed_by_stage(results: dict[str, Any]) -> None:
    found = check(Results, results, "here")
    columns = ("rounds", "asked", "in time", "late", "arrived", "away", "seconds")
    assert run_tables.stages(found).columns == ("stage", *columns)
    assert run_tables.stages(found).rows == (
        ("improve", "1", "8", "7", "1", "0", "2", "40.0"),
        ("personalization", "2", "16", "14", "2", "1", "4", "111.2"),
    )
    assert run_tables.rounds(found).rows == (
        ("improve", "1", "8", "7", "1", "0", "2", "40.0"),
        ("personalization", "1", "8", "6", "2", "0", "2", "60.0"),
        ("personalization", "2", "8", "8", "0", "1", "2", "51.2"),
    )
    assert run_tables.never(found).rows == (
        ("speaker-98", "after the deadline: 1, not sampled: 1"),
    )


def test_rounds_on_boxes_tell_when_they_began(results: dict[str, Any]) -> None:
    for number, row in enumerate(results["participation"]["rounds"]):
        row["began"] = f"2026-11-28T10:0{number}:00+00:00"
    found = check(Results, results, "here")
    assert run_tables.rounds(found).columns[-2:] == ("seconds", "began")
    assert run_tables.rounds(found).rows[1][-2:] == ("60.0", "2026-11-28T10:01:00+00:00")
    notes = " ".join(run_tables.stages(found).notes)
    assert "to its last answer or its deadline" in notes and "simulated" not in notes


def test_without_participation_there_is_nothing_to_tell(results: dict[str, Any]) -> None:
    del results["participation"]
    found = check(Results, results, "here")
    for table in (run_tables.stages(found), run_tables.rounds(found), run_tables.never(found)):
        assert table.rows == ()


def test_a_minus_stands_before_numbers_and_a_hyphen_in_words() -> None:
    figures = Table("t", ("way", "speed-up"), (("ad-psgd", "-1.5"), ("ring", "1.2 [-3, 4]")))
    page = markup.table(figures)
    assert '<th scope="col" class="number">speed-up</th>' in page
    assert ">−1.5</td>" in page and ">1.2 [−3, 4]</td>" in page
    assert ">ad-psgd</th>" in page
