"""What a run of kind `data-parallel` left, typed: `results.json`, and what it measured of time.

Seconds, bytes and distances between learners differ from run to run, and of asynchronous methods
the errors do as well; so the former are in `timing.json`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fedspeech.report.results import Interval, Record, Wer, check


class Row(Wer):
    """One way to train with so many learners; rates are means over the seeds.

    `joined` are the utterances that all learners have together at a time, `minus_one` is the rate
    minus that of one learner, `left_apart` the second eigenvalue of the mixing matrix.
    """

    row: str
    way: str
    learners: int
    joined: int
    slowed: tuple[float, ...]
    processor: float | None
    left_apart: float | None
    seeds: tuple[float, ...]
    losses: tuple[float, ...]
    diverged: int
    minus_one: Interval | None
    converges: bool | None

    @property
    def label(self) -> str:
        """What it is called: without its batch."""
        if self.learners == 1 and not self.way.endswith("delay-by-one"):
            return "one learner"
        held = f", at {self.processor:g}" if self.processor else ""
        straggler = f", one {self.slowest:g}x" if self.slowest > 1 else ""
        return f"{self.way}, {self.learners}{held}{straggler}"

    @property
    def slowest(self) -> float:
        """How many times slower the slowest learner is."""
        return max(self.slowed, default=1.0)


class ParallelResults(Record):
    """`results.json` of a run of kind `data-parallel`; `batch_size` is the base one."""

    kind: Literal["data-parallel"]
    name: str
    seed: int
    seeds: tuple[int, ...]
    speakers: int
    skipped: int
    model: str
    parameters: int
    batch_size: int
    table: tuple[Row, ...]

    @property
    def free(self) -> tuple[Row, ...]:
        """The rows whose learners are held to no share of a processor; a single one, however."""
        rows = self.table
        return tuple(row for row in rows if row.processor is None or len(rows) == 1)

    @property
    def base(self) -> tuple[Row, ...]:
        """Those of them at the base batch size."""
        return tuple(row for row in self.free if row.joined == self.batch_size)

    @property
    def one(self) -> Row | None:
        """What the others are compared with: one learner."""
        return next((row for row in self.base if row.learners == 1), None)

    @property
    def title(self) -> str:
        """What the run was."""
        seeds = ", ".join(map(str, self.seeds))
        return f"{self.name}: {self.model} trained data-parallel, seeds {seeds}"


class Epoch(Record):
    """Of all learners; lists have a number for each. In one that `starts` the learners start."""

    starts: bool
    loss: float
    seconds: float
    utterances: int
    updates: int
    bytes: int
    computing: tuple[float, ...]
    waiting: tuple[float, ...]
    staleness: float
    most_stale: int
    gap: float | None = None
    """An epoch of an earlier version has none."""
    consensus: float


class Cell(Record):
    """How a row's training with one seed went."""

    cell: str
    deaths: int = 0
    restarts: int = 0
    """How often all learners went back to a checkpoint."""
    rejoins: int = 0
    epochs: tuple[Epoch, ...]

    @property
    def steady(self) -> tuple[Epoch, ...]:
        """The epochs by which the pace is told: those in which no learners start, if there are."""
        return tuple(epoch for epoch in self.epochs if not epoch.starts) or self.epochs

    @property
    def between(self) -> tuple[Epoch, ...]:
        """The epochs at whose end learners go on: all but the last one, if there are more."""
        return self.epochs[:-1] or self.epochs


class Point(Record):
    """A simulated epoch."""

    way: str
    learners: int
    seconds: float


class Link(Record):
    """What simulated learners talk over."""

    bandwidth: float
    latency: float

    def __str__(self) -> str:
        return f"{self.bandwidth / 1e9:g} GB/s each way, {1e3 * self.latency:g} ms"


class Node(Link):
    """What so many learners talk over that are in one."""

    size: int


class Simulated(Record):
    """Seconds of an epoch that nobody measured: of the rows, and of many learners (`curves`)."""

    processors: int
    batch_size: int
    network: Link
    node: Node | None = None
    here: Link
    rows: Mapping[str, float]
    curves: tuple[Point, ...]

    @property
    def many(self) -> str:
        """Whose seconds the curves are."""
        node = self.node
        inside = f"in nodes of {node.size}: {node}" if node else "also those of a node"
        return (
            f"learners with batches of {self.batch_size} and a processor each, which talk over "
            f"{self.network} ({inside})"
        )


class Went(Record):
    """`timing.json` of a run of kind `data-parallel`."""

    cells: tuple[Cell, ...] = ()
    simulated: Simulated | None = None

    def of(self, row: Row) -> tuple[Cell, ...]:
        """The trainings of a row, one for each seed, that have come to an epoch."""
        return tuple(
            each
            for each in self.cells
            if each.cell.rpartition(".seed-")[0] == row.row and each.epochs
        )

    def steady(self, row: Row) -> tuple[Epoch, ...]:
        """The epochs of a row by which its pace is told."""
        return tuple(epoch for each in self.of(row) for epoch in each.steady)

    def pace(self, row: Row) -> float | None:
        """Utterances in a second."""
        return _pace(self.steady(row))

    def paces(self, row: Row) -> list[float]:
        """The same with each seed."""
        return [pace for each in self.of(row) if (pace := _pace(each.steady))]

    def seconds(self, row: Row) -> float | None:
        """The mean of an epoch."""
        epochs = self.steady(row)
        return sum(epoch.seconds for epoch in epochs) / len(epochs) if epochs else None


def _pace(epochs: Sequence[Epoch]) -> float | None:
    seconds = sum(epoch.seconds for epoch in epochs)
    return sum(epoch.utterances for epoch in epochs) / seconds if seconds else None


def went(timing: Mapping[str, Any]) -> Went:
    """What timing.json holds. Raises RunError where it is not as expected."""
    return check(Went, timing, "timing.json")
