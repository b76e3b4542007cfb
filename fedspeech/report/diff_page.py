"""The page of a run of kind `neural-diff`: what goes between the frame's header and its end."""

from fedspeech.report import diff_figures, diff_tables, frame, markup
from fedspeech.report.diff_results import DIFF, DiffResults
from fedspeech.report.frame import INTERVALS, Section
from fedspeech.report.run_folder import RunFolder
from fedspeech.report.tables import Estimate

HOW_TO_READ = (
    "BL is trained anew on all that a generation has, without a limit; its generation 0 is F_0, "
    "with which every line of diffs begins. BL∞ is F_0 for ever. BLC is a model that is itself as "
    "sparse as a diff, or hashed to as many cells; the bytes of both are below. A diff turns the "
    "generation before into this one; what is judged is the model that a device gets when it "
    "applies the diff's bytes.",
    f"{INTERVALS} Regret and differences are paired.",
    "All numbers but those of time follow from the seeds, the corpus and the settings.",
)


def body(results: DiffResults, run: RunFolder) -> str:
    """Everything below the header."""
    about = (
        f"{results.metric} in percent in the last generation: the mean over seeds and speakers, "
        "with its 95 % interval."
    )
    figures = diff_figures.every(results)
    errors, regret = frame.figure(figures, "Errors"), frame.figure(figures, "Regret")
    sections = [
        Section("Errors", [errors, frame.tables(diff_tables.errors(results))]),
        Section(
            "Regret",
            [regret, frame.tables(diff_tables.regret(results), diff_tables.minus_blc(results))],
        ),
        Section("Bytes and time", [frame.tables(diff_tables.sizes(results)), frame.time(run)]),
    ]
    return frame.body(_tiles(results), about, sections, HOW_TO_READ, run)


def _tiles(results: DiffResults) -> list[str]:
    last = len(results.generations) - 1
    found = []
    for name, line in results.lines.items():
        if line[0].ratio is None or name.startswith(DIFF):
            mean, low, high = Estimate.of(line[-1]).texts()
            assert line[-1].generation == last
            found.append(markup.tile(name, f"{mean} %", f"{low} to {high}"))
    return found
