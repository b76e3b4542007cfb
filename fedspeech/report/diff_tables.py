"""The tables of a run of kind `neural-diff`, as data."""

from collections.abc import Callable, Sequence

from fedspeech.report.diff_results import BLC, DIFF, DiffResults, Row
from fedspeech.report.run_tables import size
from fedspeech.report.tables import Estimate, Table, fallen_back, skipped


def every(results: DiffResults) -> list[Table]:
    """All of them."""
    return [errors(results), regret(results), minus_blc(results), sizes(results)]


def errors(results: DiffResults) -> Table:
    """Every line of models, a column per generation."""
    rows = _rows(results, list(results.lines), Estimate.of)
    columns, notes = ("model", *_columns(results)), tuple(skipped(results.skipped))
    return Table(f"{results.metric} %", columns, rows, notes=notes)


def regret(results: DiffResults) -> Table:
    """The same without BL, from which it is counted."""
    lines = [name for name in results.lines if name != "BL"]
    rows = _rows(results, lines, lambda row: Estimate.of(row.regret, signed=True))
    notes = ("Regret: points above BL, which is trained anew without a limit; paired.",)
    return Table("Regret", ("model", *_columns(results)), rows, notes=notes)


def minus_blc(results: DiffResults) -> Table:
    """Each diff beside the model that is itself as sparse."""
    rows = _rows(results, [n for n in results.lines if n.startswith(DIFF)], _beside_blc)
    notes = (f"Points that a diff has more than the {BLC} of its method and ratio; paired.",)
    return Table(f"Diff minus {BLC}", ("diff", *_columns(results)), rows, notes=notes)


def _beside_blc(row: Row) -> str | Estimate:
    return Estimate.of(row.minus_blc, signed=True) if row.minus_blc else ""


def sizes(results: DiffResults) -> Table:
    """How much was sent, as it is measured and as the paper counts."""
    rows = []
    for name, line in results.lines.items():
        if line[0].ratio is not None:
            sent = [count for row in line for count in row.bytes]
            least = min(row.full / count for row in line for count in row.bytes)
            values = max(row.sent for row in line)
            spread = f"{size(min(sent))} to {size(max(sent))}"
            rows.append((name, spread, f"{least:.1f}x", f"{1 / values:.1f}x"))
    notes = (
        "by bytes: those of a whole model over those of the largest container; by values: those of "
        "the matrices over those of them that are sent, or cells, which is how the paper counts.",
        *_fallen_back(results),
    )
    columns = ("model", "bytes", "by bytes", "by values")
    return Table("What is sent", columns, tuple(rows), notes=notes)


def _fallen_back(results: DiffResults) -> list[str]:
    """A note for each line of diffs of which some matrix was not sent as it was asked for."""
    found = []
    for name, line in results.lines.items():
        if matrices := [matrix for row in line for matrix in row.additive]:
            found.append(fallen_back(name, matrices))
    return found


def _columns(results: DiffResults) -> list[str]:
    return [f"{t}: {one.label}" for t, one in enumerate(results.generations)]


def _rows(
    results: DiffResults, lines: Sequence[str], show: Callable[[Row], str | Estimate]
) -> tuple[tuple[str | Estimate, ...], ...]:
    found = []
    for name in lines:
        cells = {row.generation: show(row) for row in results.lines[name]}
        found.append((name, *(cells.get(t, "") for t in range(len(results.generations)))))
    return tuple(found)
