"""The figures of a run of kind `data-parallel`."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from fedspeech.report.canvas import Plot
from fedspeech.report.parallel_results import Cell, Epoch, ParallelResults, Row, Went
from fedspeech.report.parallel_tables import SAMPLED, SIMULATED, per_learner
from fedspeech.report.shapes import Line, Rate, lines, panels, rates, stacked

MEASURED = "measured"
MANY = f"Seconds of an epoch ({SIMULATED})"


def every(results: ParallelResults, went: Went) -> dict[str, Plot | None]:
    """All of them by their titles, None where there is nothing to draw."""
    return {
        "Errors": errors(results),
        "Loss against epochs": loss_by_epoch(results),
        "Loss against time": loss_by_time(results, went),
        "Consensus": consensus(results, went),
        "Speed-up": speed_up(results, went),
        "Computing and waiting": seconds(results, went),
        MANY: many(results, went),
    }


def errors(results: ParallelResults) -> Plot:
    """WER of every row at the base batch size."""
    caption = (
        f"WER in percent at the base batch size of {results.batch_size}, by method and number of "
        "learners, with its 95 % interval; small points are single seeds."
    )
    found = [Rate(row.label, row.mean, row.low, row.high, row.seeds) for row in results.base]
    return rates(found, "WER %", "errors", caption)


def loss_by_epoch(results: ParallelResults) -> Plot | None:
    """Loss against epoch, of one learner and of each method."""
    found = {
        title: [
            Line(name, range(1, len(row.losses) + 1), row.losses, place)
            for row, name, place in some
            if row.losses
        ]
        for title, some in _panels(results).items()
    }
    caption = (
        "The mean loss of a training utterance in nats while it was learned, over all seeds with "
        "which the training did not diverge."
    )
    return _some(found, ("epoch", "loss, nats"), "loss-by-epoch", caption, "y")


def loss_by_time(results: ParallelResults, went: Went) -> Plot | None:
    """The same against the seconds that passed, of the first seed."""
    found = _over_time(results, went, lambda epoch: epoch.loss)
    caption = (
        f"The same with seed {results.seed} against the seconds that had passed, from the start of "
        "the learners."
    )
    return _some(found, ("seconds", "loss, nats"), "loss-by-time", caption, "y")


def consensus(results: ParallelResults, went: Went) -> Plot | None:
    """Distance between learners' models against time, where a method leaves them apart."""
    found = _over_time(results, went, lambda epoch: epoch.consensus, lambda cell: cell.between)
    caption = (
        "Euclidean distance of learners' parameters from their average, root mean square, "
        f"{SAMPLED}; without the last epoch, after which some methods make learners alike. With "
        f"seed {results.seed}."
    )
    apart = {title: [line for line in some if any(line.y)] for title, some in found.items()}
    return _some(apart, ("seconds", "distance"), "consensus", caption, "")


def speed_up(results: ParallelResults, went: Went) -> Plot | None:
    """How many times the utterances per second of one learner."""
    one = went.pace(results.one) if results.one else None
    if not one:
        return None
    found = []
    for place, (name, rows) in enumerate(_by_way(results).items(), 1):
        points = {1: 1.0} | {row.learners: p / one for row in rows if (p := went.pace(row))}
        if len(points) > 1:
            learners, ratios = zip(*points.items(), strict=True)
            found.append(Line(name, learners, ratios, place, "o"))
    most = max((row.learners for row in results.base), default=1)
    ideal = Line("one for each", (1, most), (1, most), 0, "", ":")
    caption = (
        "Measured utterances per second over those of one learner, at the base batch size. Where "
        "there are more learners than processors, they share them."
    )
    axes = ("learners", "speed-up")
    return lines([*found, ideal], axes, "speed-up", caption) if found else None


def seconds(results: ParallelResults, went: Went) -> Plot | None:
    """Seconds computing and waiting of each row at the base batch size."""
    found = [
        (
            row.label,
            [
                per_learner(went.steady(row), lambda epoch: epoch.computing),
                per_learner(went.steady(row), lambda epoch: epoch.waiting),
            ],
        )
        for row in results.base
        if went.of(row)
    ]
    caption = (
        "Measured seconds of a learner in an epoch: computing, which includes waiting for a "
        "processor where learners share them, and waiting for others."
    )
    parts = ("computing", "waiting")
    return stacked(found, parts, "seconds", "seconds", caption) if found else None


def many(results: ParallelResults, went: Went) -> Plot | None:
    """Simulated seconds of an epoch against learners, with the measured ones on it."""
    found = went.simulated
    if found is None:
        return None
    by_way: dict[str, list[tuple[int, float]]] = {}
    for point in found.curves:
        by_way.setdefault(point.way, []).append((point.learners, point.seconds))
    curves = []
    # What all are compared with is of no method: its point has a place of its own.
    places = {name: place for place, name in enumerate(by_way, 1)}
    for name, points in by_way.items():
        learners, values = zip(*sorted(points), strict=True)
        curves.append(Line(name, learners, values, places[name]))
    for row in results.table:
        place = 0 if row is results.one else places.get(row.way)
        # Only what was measured with as large batches, and a processor for each learner.
        alike = row.joined == row.learners * found.batch_size and row.processor is None
        measured = went.seconds(row)
        if place is not None and alike and measured and row.learners <= found.processors:
            name = "" if any(line.name == MEASURED for line in curves) else MEASURED
            curves.append(Line(name, [row.learners], [measured], place, "o", ""))
    caption = (
        f"Lines are {SIMULATED}: seconds of an epoch of {found.many}. Points are measured; that of "
        "one learner is the same for all methods but delay-by-one."
    )
    return lines(curves, ("learners", f"seconds ({SIMULATED})"), "many", caption, log="xy")


class Placed(NamedTuple):
    """A row, and what its line is called and looks like."""

    row: Row
    name: str
    place: int


def _panels(results: ParallelResults) -> dict[str, list[Placed]]:
    """By the number of learners: one learner, and all methods with so many at the base batch."""
    one = [Placed(results.one, results.one.label, 0)] if results.one else []
    found: dict[int, list[Placed]] = {}
    for place, rows in enumerate(_by_way(results).values(), 1):
        for row in rows:
            found.setdefault(row.learners, [*one]).append(Placed(row, row.way, place))
    titled = {f"{n} learner{'s' * (n > 1)}": some for n, some in sorted(found.items())}
    return titled or {"": one}


def _by_way(results: ParallelResults) -> dict[str, list[Row]]:
    """The rows at the base batch size by their number of learners, but for what all are compared
    with."""
    found: dict[str, list[Row]] = {row.way: [] for row in results.base if row.learners > 1}
    for row in sorted(results.base, key=lambda row: row.learners):
        if row is not results.one:
            found.setdefault(row.way, []).append(row)
    return found


def _over_time(
    results: ParallelResults,
    went: Went,
    value: Callable[[Epoch], float],
    of: Callable[[Cell], Sequence[Epoch]] = lambda cell: cell.epochs,
) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = {}
    for title, some in _panels(results).items():
        for row, name, place in some:
            for cell in _of_seed(went.of(row), results.seed):
                epochs = of(cell)
                passed = list(itertools.accumulate(epoch.seconds for epoch in epochs))
                line = Line(name, passed, [value(epoch) for epoch in epochs], place)
                found.setdefault(title, []).append(line)
    return found


def _of_seed(cells: Iterable[Cell], seed: int) -> list[Cell]:
    return [cell for cell in cells if cell.cell.endswith(f".seed-{seed}")]


def _some(
    found: Mapping[str, Sequence[Line]],
    labels: tuple[str, str],
    name: str,
    caption: str,
    log: str,
) -> Plot | None:
    there = {title: some for title, some in found.items() if some}
    return panels(there, labels, name, caption, log) if there else None
