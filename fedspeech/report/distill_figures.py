"""The figures of a run of kind `distillation`: errors of each row, and how the losses fell."""

from fedspeech.report.canvas import Plot, color, drawing, plot
from fedspeech.report.distill_results import DistillResults
from fedspeech.report.distill_tables import students

COLORS = ("ink", "mean", "kbest", "dendrogram", "random", "other-1", "other-2", "other-3")
STYLES = ("-", "--", ":")


def errors(results: DistillResults) -> Plot:
    """A row for each model: its rate with the interval, and a point for each seed."""
    rows = results.table
    best = min(students(results) or rows, key=lambda row: row.mean)
    caption = (
        f"WER in percent, with its 95 % interval; small points are single seeds. Lowest of the "
        f"students: {best.row} with {best.mean:.2f} %."
    )
    with drawing(60 + 26 * len(rows)) as figure:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            axes.plot([row.low, row.high], [place, place], color=color("muted"), linewidth=1.8)
            axes.plot(row.seeds, [place] * len(row.seeds), ".", color=color("muted"))
            axes.plot([row.mean], [place], "o", color=color("kbest"))
        axes.set_yticks(range(len(rows)), [row.row for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("WER %")
        axes.grid(axis="x")
        return plot(figure, "errors", caption)


def losses(results: DistillResults) -> Plot | None:
    """Loss against epoch; None where nothing was trained."""
    rows = [row for row in results.table if row.losses]
    if not rows:
        return None
    caption = (
        "The mean loss of a training utterance in nats, as the model had it while it learned: with "
        "the teacher's modules in their places, and with the divergence from the teacher for kd."
    )
    with drawing(240) as figure:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            shade, style = COLORS[place % len(COLORS)], STYLES[place // len(COLORS) % len(STYLES)]
            epochs = range(1, len(row.losses) + 1)
            axes.plot(epochs, row.losses, style, color=color(shade), label=row.row)
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss, nats")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(axis="y")
        axes.legend(frameon=False)
        return plot(figure, "losses", caption)
