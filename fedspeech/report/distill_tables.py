"""The tables of a run of kind `distillation`, as data."""

from fedspeech.report.distill_results import TEACHER, DistillResults, Row
from fedspeech.report.results import Wer
from fedspeech.report.tables import Estimate, Table, skipped


def every(results: DistillResults) -> list[Table]:
    """All of them."""
    return [errors(results), differences(results)]


def errors(results: DistillResults) -> Table:
    """Every row: its size, its errors on all that tests and on each set, and those of each seed."""
    sets = [column for name in results.sets for column in (name, f"{name}, pooled")]
    columns = ("model", "parameters", "WER %", *sets, "pooled %", "with each seed")
    rows = tuple(_row(results, row) for row in results.table)
    return Table("Errors", columns, rows, notes=_notes(results))


def _row(results: DistillResults, row: Row) -> tuple[str | Estimate, ...]:
    return (
        row.row,
        millions(row.parameters),
        Estimate.of(row),
        *(cell for name in results.sets for cell in _of_set(row.sets[name])),
        f"{row.pooled:.2f}",
        ", ".join(f"{rate:.2f}" for rate in row.seeds),
    )


def _of_set(rate: Wer) -> tuple[Estimate, str]:
    return Estimate.of(rate), f"{rate.pooled:.2f}"


def _notes(results: DistillResults) -> tuple[str, ...]:
    notes = []
    if results.usable is False:
        notes.append(
            "The teacher is no usable recognizer: nothing follows from a comparison with it."
        )
    notes += skipped(results.skipped)
    if results.shipped is not None:
        notes.append(
            f"models/generic.safetensors is the student of {results.shipped} with seed "
            f"{results.seed}."
        )
    return tuple(notes)


def differences(results: DistillResults) -> Table:
    """Every row beside the baselines, and of these the later beside the earlier."""
    baselines = results.baselines
    rows = tuple(_beside(row, baselines) for row in results.table if row.minus)
    columns = ("model", *(f"minus {name}" for name in baselines))
    notes = ("Points of WER; paired: negative means fewer errors.",)
    return Table("Beside the baselines", columns, rows, notes=notes)


def _beside(row: Row, baselines: tuple[str, ...]) -> tuple[str | Estimate, ...]:
    found = (row.minus.get(name) for name in baselines)
    return (row.row, *(Estimate.of(each, signed=True) if each else "" for each in found))


def millions(count: int) -> str:
    """A number of parameters for people."""
    return f"{count / 1e6:.2f} M"


def students(results: DistillResults) -> list[Row]:
    """All rows but the teacher's."""
    return [row for row in results.table if row.row != TEACHER]
