"""What a budget costs: WER against the bytes of one push."""

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import NullLocator

from fedspeech.report import captions
from fedspeech.report.canvas import Look, Plot, color, drawing, looks, plot
from fedspeech.report.results import Budgeted, BudgetedCell, Results
from fedspeech.report.run_tables import size
from fedspeech.report.tables import CHOSEN, Estimate, Table, fallen_back

HEIGHT = 260
WHOLE = "whole"
CHOSEN_NOTE = "Each at the alphas that the devices chose for themselves."
BEST_NOTE = "Each at its best alpha on test_s itself, unless the devices chose."


def table(results: Results) -> Table:
    """A row for each base and budget, at the alphas that the devices chose."""
    rows = tuple((row.base, row.budget or WHOLE, *_figures(row)) for row in results.budgets)
    chosen = all(row.told.alpha == "chosen" for row in results.budgets)
    notes = (
        "size: of one push of M_s to one device; lost: the share of the squared change that did "
        "not fit; change: the paired difference from the same base and alpha in the first row of "
        "the base.",
        CHOSEN_NOTE if chosen else BEST_NOTE,
        *(
            fallen_back(f"{row.base} at {row.budget}", row.additive)
            for row in results.budgets
            if row.additive
        ),
    )
    columns = ("base", "budget", "size", "lost %", "WER %", "change")
    return Table("WER against bytes", columns, rows, words=2, notes=notes)


def _alpha(cell: BudgetedCell) -> str:
    return CHOSEN if cell.alpha == "chosen" else f"{cell.alpha:g}"


def _figures(row: Budgeted) -> tuple[str | Estimate, ...]:
    return (
        size(round(row.bytes)),
        f"{100 * row.lost:.2f}",
        Estimate.of(row.told),
        Estimate.of(row.told.change, signed=True),
    )


def grids(results: Results) -> list[Table]:
    """For each base the whole table of alphas, a column for each budget."""
    return [_grid(results, base) for base in dict.fromkeys(row.base for row in results.budgets)]


def _grid(results: Results, base: str) -> Table:
    budgets = [row for row in results.budgets if row.base == base]
    rows: tuple[tuple[str | Estimate, ...], ...] = tuple(
        (_alpha(cells[0]), *(Estimate.of(cell) for cell in cells))
        for cells in zip(*(row.table for row in budgets), strict=True)
    )
    columns = ("alpha", *(row.budget or WHOLE for row in budgets))
    return Table(f"WER % of every mix with {base}", columns, rows)


def wer_against_bytes(results: Results) -> Plot | None:
    """A curve for each base that was pushed within several budgets, with its intervals."""
    bases = {
        base: sorted((row for row in results.budgets if row.base == base), key=lambda r: r.bytes)
        for base in dict.fromkeys(row.base for row in results.budgets)
    }
    curves = {base: rows for base, rows in bases.items() if len(rows) > 1}
    if not curves:
        return None
    look = looks(results.bases)
    with drawing(HEIGHT) as figure:
        axes = figure.add_subplot()
        axes.axhline(results.personal.mean, color=color("ink"), linestyle=":", linewidth=1.2)
        for base, rows in curves.items():
            _curve(axes, base, rows, look[base])
        axes.set_xscale("log")
        ticks = [row.bytes for row in next(iter(curves.values()))]
        axes.set_xticks(ticks, [_kilobytes(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="kB of one push of M_s (logarithmic)", ylabel="WER %")
        axes.grid(axis="y")
        axes.legend(frameon=False, fontsize="small")
        return plot(figure, "wer-against-bytes", captions.wer_against_bytes(results))


def _kilobytes(count: float) -> str:
    """As short as can be: labels of 10x and 20x are near each other."""
    value = count / 1000
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _curve(axes: Any, base: str, rows: Sequence[Budgeted], look: Look) -> None:
    sizes, told = [row.bytes for row in rows], [row.told for row in rows]
    lows, highs = [cell.low for cell in told], [cell.high for cell in told]
    axes.fill_between(sizes, lows, highs, color=look.color, alpha=0.12, linewidth=0)
    means = [cell.mean for cell in told]
    axes.plot(
        *(sizes, means), look.marker, linestyle="-", color=look.color, markersize=5, label=base
    )
