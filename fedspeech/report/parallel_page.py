"""The page of a run of kind `data-parallel`: what goes between the frame's header and its end."""

from fedspeech.report import frame, markup, parallel_figures, parallel_tables
from fedspeech.report.frame import INTERVALS, Figures, Section
from fedspeech.report.parallel_results import ParallelResults, Went, went
from fedspeech.report.parallel_tables import SIMULATED
from fedspeech.report.run_folder import RunFolder
from fedspeech.report.tables import Estimate

ABOUT = "WER in percent: the mean over seeds and speakers, with its 95 % interval."
HOW_TO_READ = (
    "allreduce: gradients are averaged in every step. parameter-server: learners take the model "
    "from a server and bring it gradients, each when it is ready. ring: in every step all average "
    "their models with both neighbours. ad-psgd ring, ad-psgd random: a learner that is ready "
    "averages its model with that of one neighbour, or of any in the other half. ad-psgd "
    "delay-by-one: as ring, but gradients are of the model one step before. hierarchical: "
    "allreduce inside a node, ad-psgd ring between nodes. bmuf: blocks of steps alone, then an "
    "average with momentum. Numbers beside a method are its learners; batches are of all of them "
    "together.",
    f"{INTERVALS} Differences are paired.",
    "allreduce, ring, ad-psgd delay-by-one and bmuf give the same errors whenever they are run "
    "again, ring and delay-by-one if no learner dies. The others do not: who averages with whom, "
    "and whose step comes first, follows from who is ready first.",
    f"Whatever is called {SIMULATED} was computed by a model of learners and their network, and "
    "not measured.",
)
NONE = "the run has none."


def body(results: ParallelResults, run: RunFolder) -> str:
    """Everything below the header. Raises RunError where timing.json is not as expected."""
    times = went(run.timing.model_dump())
    tables, figures = parallel_tables, parallel_figures.every(results, times)
    errors = frame.tables(tables.errors(results), tables.largest(results))
    sections = [
        Section("Errors", [frame.figure(figures, "Errors"), errors]),
        Section("Learning", _learning(figures)),
        Section("Pace", [*_pace(figures), _measured(results, times)]),
        Section("Stragglers and deaths", [_disturbed(results, times)]),
        Section(f"Many learners ({SIMULATED})", _simulated(results, times, figures)),
        Section("Time", [frame.time(run, stages_alone=True)]),
    ]
    return frame.body(_tiles(results, times), ABOUT, sections, HOW_TO_READ, run)


def _learning(figures: Figures) -> list[str]:
    alike = "no method of the run leaves its learners' models apart."
    return [
        frame.figure(figures, "Loss against epochs", NONE),
        frame.figure(figures, "Loss against time", NONE),
        frame.figure(figures, "Consensus", alike),
    ]


def _pace(figures: Figures) -> list[str]:
    return [
        frame.figure(figures, "Speed-up", NONE),
        frame.figure(figures, "Computing and waiting", NONE),
    ]


def _measured(results: ParallelResults, times: Went) -> str:
    return frame.tables(parallel_tables.pace(results, times), parallel_tables.talk(results, times))


def _disturbed(results: ParallelResults, times: Went) -> str:
    tables = parallel_tables
    return frame.tables(tables.stragglers(results, times), tables.deaths(results, times))


def _simulated(results: ParallelResults, times: Went, figures: Figures) -> list[str]:
    return [
        frame.figure(figures, parallel_figures.MANY, "the run compares nothing."),
        frame.tables(parallel_tables.beside(results, times)),
        frame.tables(parallel_tables.many(times)),
    ]


def _tiles(results: ParallelResults, times: Went) -> list[str]:
    found = []
    for row in results.base:
        mean, low, high = Estimate.of(row).texts()
        pace = times.pace(row)
        fast = f"; {pace:.0f} utterances/s" if pace else ""
        found.append(markup.tile(row.label, f"{mean} %", f"{low} to {high}{fast}"))
    return found
