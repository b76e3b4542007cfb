"""The figures of a run of kind `distillation`: errors of each row, and how the losses fell."""

from fedspeech.report import distill_ablations
from fedspeech.report.canvas import Plot
from fedspeech.report.distill_results import DistillResults
from fedspeech.report.distill_tables import students
from fedspeech.report.shapes import Line, Rate, lines, rates


def every(results: DistillResults) -> dict[str, Plot | None]:
    """All of them by their titles, None where there is nothing to draw."""
    ablations = {title: draw(results) for title, draw in distill_ablations.FIGURES.items()}
    return {"Errors": errors(results), "Losses": losses(results), **ablations}


def errors(results: DistillResults) -> Plot:
    """A row for each model: its rate with the interval, and a point for each seed."""
    rows = results.table
    best = min(students(results) or rows, key=lambda row: row.mean)
    caption = (
        f"WER in percent, with its 95 % interval; small points are single seeds. Lowest of the "
        f"students: {best.row} with {best.mean:.2f} %."
    )
    found = [Rate(row.row, row.mean, row.low, row.high, row.seeds) for row in rows]
    return rates(found, "WER %", "errors", caption)


def losses(results: DistillResults) -> Plot | None:
    """Loss against epoch; None where nothing was trained."""
    rows = [row for row in results.table if row.losses]
    if not rows:
        return None
    caption = (
        "The mean loss of a training utterance in nats, as the model had it while it learned: with "
        "the teacher's modules in their places, and with the divergence from the teacher for kd."
    )
    found = [
        Line(row.row, range(1, len(row.losses) + 1), row.losses, place)
        for place, row in enumerate(rows)
    ]
    return lines(found, ("epoch", "loss, nats"), "losses", caption, log="y")
