"""A run's tables in a terminal; plain text where it is not one."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from fedspeech.report import budgets, run_tables, tables, trainings
from fedspeech.report.results import Results
from fedspeech.report.run_folder import parse
from fedspeech.report.run_tables import size
from fedspeech.report.tables import Estimate, Table


def show(
    results: Mapping[str, Any], console: Console, timing: Mapping[str, Any] | None = None
) -> None:
    """Print the tables of a run, as its kind has them.

    `results` is what `results.json` holds, `timing` what `timing.json` does. Raises RunError where
    they are not as expected.
    """
    found = parse(results, "results")
    if isinstance(found, Results):
        _personalization(found, console)
        return
    console.print(Text(found.title, style="bold"))
    for table in trainings.tables_of(found, timing or {}):
        _print(table, console)


def _personalization(found: Results, console: Console) -> None:
    """The paper's Tables 1, 2 and 3, the bytes sent, who took part and the failures."""
    title = f"{found.name}: {found.speakers} speakers, seed {found.seed}"
    console.print(Text(title, style="bold"))
    for table in (tables.corpus(found), tables.models(found), tables.bases(found)):
        _print(table, console)
    _print(budgets.table(found), console)
    sent = found.bytes
    totals = (
        f"{size(sent.down)} down, {size(sent.up)} up; one whole model is {size(sent.full_model)}"
    )
    console.print(Text(f"\nSent: {totals}."))
    for table in (run_tables.stages(found), run_tables.never(found), tables.failures(found)):
        _print(table, console)


def _print(table: Table, console: Console) -> None:
    if table.empty:
        return
    rich = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, name in enumerate(table.columns):
        words = number < table.words
        rich.add_column(
            Text(name), justify="left" if words else "right", no_wrap=not words, overflow="fold"
        )
    for number, row in enumerate(table.rows):
        style = "bold" if number in table.marked else ""
        rich.add_row(*(Text(_text(cell), overflow="fold") for cell in row), style=style)
    console.print(Text(f"\n{table.title}", style="bold"))
    console.print(rich)
    for note in table.notes:
        console.print(Text(note, style="dim"))


def _text(cell: str | Estimate) -> str:
    if isinstance(cell, str):
        return cell
    mean, low, high = cell.texts()
    return f"{mean} [{low}, {high}]"
