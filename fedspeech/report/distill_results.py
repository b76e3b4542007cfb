"""`results.json` of a run of kind `distillation`, typed: what the report may count on."""

from typing import Literal

from fedspeech.report.results import Interval, Record, Wer

TEACHER, STUDENT, KD = "teacher", "student", "kd"


class Replacing(Record):
    """How a row's modules were replaced: the settings of its section `replacing`."""

    schedule: str
    rate: float
    base: float
    phase: float
    strategy: int


class Row(Wer):
    """One model; rates are means over the seeds, and of these over speakers.

    `replacing` is None where nothing was, and in what earlier versions wrote. `sets` has the rates
    on each test set where there are several, `losses` the mean loss per utterance of every epoch,
    `minus` the differences to the baselines.
    """

    row: str
    parameters: int
    replacing: Replacing | None = None
    seeds: tuple[float, ...]
    sets: dict[str, Wer]
    losses: tuple[float, ...]
    minus: dict[str, Interval]


class DistillResults(Record):
    """`results.json` of a run of kind `distillation`."""

    kind: Literal["distillation"]
    name: str
    seed: int
    seeds: tuple[int, ...]
    speakers: int
    skipped: int
    teacher: str
    student: str
    usable: bool | None
    shipped: str | None
    table: tuple[Row, ...]

    @property
    def sets(self) -> tuple[str, ...]:
        """The test sets, where there are several."""
        return tuple(self.table[0].sets)

    @property
    def baselines(self) -> tuple[str, ...]:
        """What rows are compared with."""
        return tuple(dict.fromkeys(name for row in self.table for name in row.minus))

    @property
    def title(self) -> str:
        """What the run was."""
        seeds = ", ".join(map(str, self.seeds))
        return f"{self.name}: {self.student} out of {self.teacher}, seeds {seeds}"
