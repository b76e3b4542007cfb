"""The page of a run of kind `distillation`: what goes between the frame's header and its end."""

from fedspeech.report import distill_ablations, distill_figures, distill_tables, frame, markup
from fedspeech.report.distill_results import DistillResults
from fedspeech.report.frame import INTERVALS, Figures, Section
from fedspeech.report.run_folder import RunFolder
from fedspeech.report.tables import Estimate

ABOUT = "WER in percent: the mean over seeds and speakers, with its 95 % interval."
HOW_TO_READ = (
    "student: the small model trained alone. kd: with distillation over the lattice. All others: "
    "with modules of the student replaced by the teacher's while it learns, as often as the row's "
    "settings say, if at all. All have the same updates of the same minibatches.",
    f"{INTERVALS} Differences are paired: two intervals may overlap and the difference still be "
    "clear.",
    "All numbers but those of time follow from the seeds, the corpus and the settings.",
)


def body(results: DistillResults, run: RunFolder) -> str:
    """Everything below the header."""
    figures = distill_figures.every(results)
    errors = frame.tables(distill_tables.errors(results), distill_tables.differences(results))
    losses = frame.figure(figures, "Losses", "nothing was trained.")
    sections = [
        Section("Errors", [frame.figure(figures, "Errors"), errors]),
        *_varied(figures),
        Section("Training and time", [losses, frame.time(run)]),
    ]
    return frame.body(_tiles(results), ABOUT, sections, HOW_TO_READ, run)


def _varied(figures: Figures) -> list[Section]:
    """What several ways of replacing change, as far as the run has some to compare."""
    drawn = [title for title in distill_ablations.FIGURES if figures[title] is not None]
    found = [frame.figure(figures, title) for title in drawn]
    return [Section("Ways to replace", found)] if found else []


def _tiles(results: DistillResults) -> list[str]:
    found = []
    for row in results.table:
        mean, low, high = Estimate.of(row).texts()
        size = distill_tables.millions(row.parameters)
        found.append(markup.tile(row.row, f"{mean} %", f"{low} to {high}; {size}"))
    return found
