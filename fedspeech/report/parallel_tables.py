"""The tables of a run of kind `data-parallel`, as data."""

from collections.abc import Callable, Sequence

from fedspeech.report.parallel_results import Epoch, ParallelResults, Row, Went
from fedspeech.report.run_tables import size
from fedspeech.report.tables import Estimate, Table, skipped

SIMULATED = "simulated"
NOT_MEASURED = "–"
SAMPLED = (
    "as each learner ends an epoch and never in between, so at different moments where they do not "
    "wait for each other: of parameter-server, whose learners all take one model, it is what that "
    "has changed by meanwhile; with bmuf it depends on where in a block that is"
)
"""How the distance between learners is measured."""


def every(results: ParallelResults, went: Went) -> list[Table]:
    """All of them."""
    return [
        errors(results),
        pace(results, went),
        talk(results, went),
        largest(results),
        stragglers(results, went),
        deaths(results, went),
        beside(results, went),
        many(went),
    ]


def errors(results: ParallelResults) -> Table:
    """Every row: its errors, and how they differ from those of one learner."""
    rows = tuple(
        (
            row.label,
            str(row.joined),
            Estimate.of(row),
            Estimate.of(row.minus_one, signed=True) if row.minus_one else "",
        )
        for row in results.table
    )
    columns = ("method, learners", "batch", "WER %", "minus one")
    notes = [
        "batch: of all learners together. minus one: points more than one learner, paired.",
        *_told(results),
    ]
    return Table("Errors", columns, rows, notes=tuple(notes))


def _told(results: ParallelResults) -> list[str]:
    found = []
    for share in sorted({row.processor for row in results.table if row.processor}):
        found.append(
            f"at {share:g}: each learner takes at most {share:g} of a processor, so that one that "
            "waits lends nothing."
        )
    if few := [row for row in results.table if len(row.seeds) < len(results.seeds)]:
        found.append(f"{'; '.join(row.label for row in few)}: with the first seed alone.")
    for slow in sorted({row.slowest for row in results.table if row.slowest > 1}):
        found.append(f"one {slow:g}x: the slowest of the learners is {slow:g} times slower.")
    if any(row.diverged for row in results.table):
        found.append("A training that diverged hears no word: its WER is 100 %.")
    found += skipped(results.skipped)
    return found


def pace(results: ParallelResults, went: Went) -> Table:
    """How fast it went where learners are held to no share of a processor."""
    one = went.pace(results.one) if results.one else None
    rows = []
    for row in _free(results, went):
        fast = went.pace(row)
        speed_up = f"{fast / one:.2f}" if fast and one else NOT_MEASURED
        epochs = went.steady(row)
        seconds = [per_learner(epochs, of) for of in (_computing, _waiting)]
        paces = went.paces(row)
        ends = (fast, min(paces), max(paces)) if fast else ()
        shown = [f"{end:.0f}" for end in ends] or [NOT_MEASURED] * 3
        rows.append((row.label, str(row.joined), *shown, speed_up, *(f"{s:.2f}" for s in seconds)))
    columns = (
        *("method, learners", "batch", "utterances/s", "least", "most", "speed-up"),
        *("computing", "waiting"),
    )
    notes = (
        "Without the first epoch of each training, and the first after it was gone on with: in "
        "these learners start. least, most: of the seeds. speed-up: over one learner at the base "
        "batch size. computing, waiting: seconds of a learner in an epoch; where there are more "
        "learners than processors, computing includes waiting for a processor.",
    )
    return Table("Pace", columns, tuple(rows), notes=notes)


def talk(results: ParallelResults, went: Went) -> Table:
    """What learners sent each other, and how far apart they were."""
    rows = []
    for row in (row for row in _free(results, went) if row.learners > 1):
        epochs = went.steady(row)
        apart = [epoch.consensus for each in went.of(row) for epoch in each.between]
        gaps = [epoch.gap for epoch in epochs if epoch.gap is not None]
        rows.append(
            (
                row.label,
                str(row.joined),
                size(round(sum(epoch.bytes for epoch in epochs) / len(epochs))),
                f"{sum(epoch.staleness for epoch in epochs) / len(epochs):.2f}",
                str(max(epoch.most_stale for epoch in epochs)),
                f"{sum(gaps) / len(gaps):.3g}" if gaps else NOT_MEASURED,
                f"{sum(apart) / len(apart):.3g}",
                NOT_MEASURED if row.left_apart is None else f"{row.left_apart:.2f}",
            )
        )
    columns = (
        *("method, learners", "batch", "sent", "staleness", "most"),
        *("gap", "apart", "eigenvalue"),
    )
    notes = (
        "sent: by all learners, and a parameter server, in an epoch. staleness: how often a model "
        "had changed when the gradient of it came: by steps for others (parameter-server), by "
        "averagings (ad-psgd, hierarchical), by the learner's own last step (delay-by-one); what "
        "ring averages in each step is not counted. gap: from a learner's model to one with which "
        "it is averaged, whenever they meet, told by 16,384 of their values or more (bmuf: to the "
        "average of all; parameter-server: to the model that is pulled after it). apart: root mean "
        "square of the learners' "
        f"distances from their average, {SAMPLED}; the mean over all epochs but the last, after "
        "which some methods make learners alike. eigenvalue: the second one of the "
        "mixing matrix, which is what an averaging leaves of such a distance, or more than it does "
        "(of its square where pairs are averaged: ad-psgd with one partner, hierarchical).",
    )
    return Table(
        "What learners sent, and how far apart they were", columns, tuple(rows), notes=notes
    )


def _free(results: ParallelResults, went: Went) -> list[Row]:
    """Rows that are compared with each other, and have come to an epoch."""
    return [row for row in results.free if went.of(row)]


def _computing(epoch: Epoch) -> tuple[float, ...]:
    return epoch.computing


def _waiting(epoch: Epoch) -> tuple[float, ...]:
    return epoch.waiting


def per_learner(epochs: Sequence[Epoch], of: Callable[[Epoch], tuple[float, ...]]) -> float:
    """Mean seconds of a learner in an epoch."""
    seconds = [one for epoch in epochs for one in of(epoch)]
    return sum(seconds) / len(seconds)


def largest(results: ParallelResults) -> Table:
    """For each method that was tried with larger batches, the largest with which it converges."""
    tried: dict[str, list[Row]] = {}
    for row in results.table:
        if row.processor is None and row.converges is not None and row.learners > 1:
            tried.setdefault(row.way, []).append(row)
    rows = []
    for name, found in tried.items():
        sizes = {row.joined: bool(row.converges) for row in sorted(found, key=lambda r: r.joined)}
        if len(sizes) > 1:
            held = [joined for joined, converges in sizes.items() if converges]
            said = ", ".join(f"{j}: {'yes' if held_ else 'no'}" for j, held_ in sizes.items())
            rows.append((name, str(max(held)) if held else "none", said))
    notes = (
        "Converges: with no seed the training diverges, and the mean WER is at most twice that of "
        "one learner at the base batch size.",
    )
    columns = ("method", "largest", "batch: converges")
    return Table("The largest batch that converges", columns, tuple(rows), notes=notes)


def stragglers(results: ParallelResults, went: Went) -> Table:
    """Each row with a straggler beside the same without one."""
    rows = []
    for row in (row for row in results.table if row.slowest > 1):
        usual = _undisturbed(results, row)
        before, after = went.pace(usual) if usual else None, went.pace(row)
        if usual:
            kept = f"{100 * after / before:.0f} %" if before and after else NOT_MEASURED
            paces = (f"{pace:.0f}" if pace else NOT_MEASURED for pace in (before, after))
            rows.append((row.label, *paces, kept))
    columns = ("method, learners", "before/s", "with it/s", "kept")
    notes = ("before, with it: utterances per second, of one training without and of one with it.",)
    return Table("With a straggler", columns, tuple(rows), notes=notes)


def _undisturbed(results: ParallelResults, row: Row) -> Row | None:
    return next(
        (
            other
            for other in results.table
            if (other.way, other.learners, other.processor, other.slowest)
            == (row.way, row.learners, row.processor, 1.0)
        ),
        None,
    )


def deaths(results: ParallelResults, went: Went) -> Table:
    """The rows of which a learner died, and what became of it."""
    rows = []
    for row in results.table:
        counts = [(cell.deaths, cell.restarts, cell.rejoins) for cell in went.of(row)]
        sums = [sum(of_seeds) for of_seeds in zip(*counts, strict=True)]
        if any(sums):
            rows.append((row.label, str(row.joined), *map(str, sums)))
    columns = ("method, learners", "batch", "died", "restarts", "joined again")
    notes = (
        "Over all seeds. restarts: all learners went back to the last checkpoint. joined again: "
        "learners that took over another one's model while the others went on.",
    )
    return Table("Learners that died", columns, tuple(rows), notes=notes)


def beside(results: ParallelResults, went: Went) -> Table:
    """Simulated seconds of an epoch beside measured ones."""
    found = went.simulated
    if found is None:
        return Table("", (), ())
    rows = []
    for row in results.table:
        measured, simulated = went.seconds(row), found.rows.get(row.row)
        if measured and simulated:
            seconds = (f"{measured:.2f}", f"{simulated:.2f}", f"{simulated / measured:.2f}")
            rows.append((row.label, str(row.joined), *seconds))
    columns = ("method, learners", "batch", "measured", SIMULATED, "ratio")
    notes = (
        f"{SIMULATED}: by a discrete-event model, out of what batches and a checkpoint take of "
        f"learners that know nothing of each other, alone and side by side, for "
        f"{found.processors} processors and {found.here}; measured on the machine that the run was "
        "started on and by gloo, also where learners were on others or talked by NCCL.",
    )
    title = f"Seconds of an epoch: {SIMULATED} beside measured"
    return Table(title, columns, tuple(rows), notes=notes)


def many(went: Went) -> Table:
    """Simulated seconds of an epoch with many learners."""
    found = went.simulated
    if found is None:
        return Table("", (), ())
    points = {(point.way, point.learners): f"{point.seconds:.3g}" for point in found.curves}
    learners = sorted({number for _, number in points})
    ways = dict.fromkeys(name for name, _ in points)
    # Of `hierarchical` there are whole nodes only.
    rows = tuple((name, *(points.get((name, n), NOT_MEASURED) for n in learners)) for name in ways)
    notes = (
        f"All of it is {SIMULATED}, and nothing measured: {found.many}, and keep checkpoints of "
        "every epoch, each of them, or with allreduce the first one.",
    )
    title = f"Seconds of an epoch with many learners ({SIMULATED})"
    return Table(title, ("method", *map(str, learners)), rows, notes=notes)
