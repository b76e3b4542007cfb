"""`results.json` of a personalization run, typed: what the report may count on.

Keys that a run may leave out have a default.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from fedspeech.errors import RunError

Alpha = float | Literal["chosen"]
R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """Keys that the report does not know are passed over; numbers are finite."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Interval(Record):
    """A mean over speakers and its 95 % interval."""

    mean: float
    low: float
    high: float


class Wer(Interval):
    """WER in percent; `pooled` is all errors over all words."""

    pooled: float


class Cell(Wer):
    """One cell of Figure 3: a base mixed at one alpha, or at each device's own choice."""

    base: str
    alpha: Alpha


class Difference(Interval):
    """A cell's WER minus that of P_s or G, paired by speaker; negative is better."""

    base: str
    alpha: Alpha
    against: Literal["personal", "generic"]


class Spread(Record):
    """Over speakers."""

    mean: float
    least: float
    most: float


class PartStatistics(Record):
    """One column of Table 1."""

    part: str
    speakers: int
    utterances: int
    words: int
    hours: float
    seconds_per_speaker: Spread


class ChosenAlpha(Record):
    """What each device chose for itself, with the base whose choice is reported first."""

    base: str
    alphas: dict[str, float] = {}


class LayerCorrelation(Record):
    """None where the correlation is not defined (no spread)."""

    layer: str
    pearson: float | None


class Dendrogram(Record):
    """Ward linkage of the speakers, rows (i, j, distance, size) as in SciPy."""

    speakers: tuple[str, ...]
    linkage: tuple[tuple[float, float, float, float], ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        merges = max(len(self.speakers) - 1, 0)
        if len(self.linkage) != merges:
            raise ValueError(f"expected {merges} rows of linkage, found {len(self.linkage)}")
        joined = [index for i, j, *_ in self.linkage for index in (i, j)]
        formed = all(max(row[:2]) < merges + 1 + i for i, row in enumerate(self.linkage))
        if not formed or sorted(joined) != list(range(2 * merges)):
            raise ValueError("the rows of linkage are not a tree")
        return self


class Decodings(Record):
    """Utterances that were decoded to choose one base's peers, and what judging all of them on
    everything needs; `cut`: speakers whose choice the budget decided."""

    used: int
    exhaustive: int
    cut: int = 0


class BudgetedCell(Wer):
    """A base pushed within a budget, mixed at one alpha; `change` is the paired difference from
    the same base and alpha without that budget."""

    alpha: Alpha
    change: Interval


class Budgeted(Record):
    """A base as it was pushed within one budget (None: as a whole).

    `bytes` of one push, the mean and the most over speakers; `lost` is the share of the squared
    change that the diff does not bring; `additive` are tensors whose hashed diff fell back to the
    additive form.
    """

    base: str
    budget: str | None
    bytes: float
    most_bytes: int
    lost: float
    additive: tuple[str, ...] = ()
    table: tuple[BudgetedCell, ...]

    @property
    def told(self) -> BudgetedCell:
        """The cell at the alphas that the devices chose, else the one with the lowest WER."""
        return min(self.table, key=lambda cell: (cell.alpha != "chosen", cell.mean))


class SpeakerResult(Record):
    """One speaker's WER on its `test_s`; `words` of that part, `seconds` of `train_s`."""

    speaker: str
    generic: float
    personal: float
    chosen: float | None = None
    words: int
    seconds: float | None = None

    @property
    def gain(self) -> float:
        """What fine-tuning took off the WER, in points; negative where it did harm."""
        return self.generic - self.personal


class Failure(Record):
    """A speaker that did not answer a message, and why."""

    speaker: str
    round: int
    message: str
    reason: str


class Attended(Record):
    """How many speakers took part in one round, and how many did not, for each reason."""

    stage: str
    round: int
    asked: int
    in_time: int
    late: int
    arrived: int
    not_available: int
    seconds: float
    began: str = ""


class Never(Record):
    """A speaker that has no personal model: in how many rounds it did not take part, by reason."""

    speaker: str
    why: dict[str, int]


class Participation(Record):
    """Who took part, in simulated time."""

    seconds: float
    rounds: tuple[Attended, ...]
    never: tuple[Never, ...]


class Curve(Record):
    """One value per epoch; None where an epoch was not judged."""

    dev_wer: tuple[float | None, ...] = ()
    train_loss: tuple[float | None, ...] = ()


class Bytes(Record):
    """Totals of the ledger, and the size of one whole model."""

    down: int
    up: int
    full_model: int


class Results(Record):
    """`results.json` of a personalization run."""

    kind: Literal["personalization"]
    name: str = "personalization"
    speakers: int
    seed: int
    corpus: tuple[PartStatistics, ...] = ()
    generic: Wer
    personal: Wer
    gain: Interval | None = None
    table: tuple[Cell, ...]
    differences: tuple[Difference, ...] = ()
    chosen_alpha: ChosenAlpha | None = None
    layer_correlation: tuple[LayerCorrelation, ...] = ()
    pairs: int = 0
    dendrogram: Dendrogram | None = None
    budgets: tuple[Budgeted, ...] = ()
    decodings: dict[str, Decodings] = {}
    peers: dict[str, dict[str, tuple[str, ...]]] = {}
    per_speaker: tuple[SpeakerResult, ...]
    failures: tuple[Failure, ...] = ()
    participation: Participation | None = None
    loss_curves: dict[str, Curve] = {}
    bytes: Bytes

    @property
    def bases(self) -> tuple[str, ...]:
        """In the order in which the table names them first."""
        return tuple(dict.fromkeys(cell.base for cell in self.table))

    def cells(self, base: str) -> list[tuple[float, Cell]]:
        """(alpha, cell) of one base over the grid, by alpha; without what devices chose."""
        return sorted(
            (
                (cell.alpha, cell)
                for cell in self.table
                if cell.base == base and cell.alpha != "chosen"
            ),
            key=lambda item: item[0],
        )

    def chosen(self, base: str) -> Cell | None:
        """The cell of one base at each device's own alpha."""
        rows = (cell for cell in self.table if cell.base == base and cell.alpha == "chosen")
        return next(rows, None)

    def difference(self, cell: Cell, against: str) -> Difference | None:
        """The paired difference of a cell, where the run made it."""
        key = (cell.base, cell.alpha, against)
        rows = (row for row in self.differences if (row.base, row.alpha, row.against) == key)
        return next(rows, None)

    def best(self, base: str) -> Cell | None:
        """The cell with the lowest WER over the grid, which is a choice made on `test_s`.

        Of equal ones the cell that the run compared, then the least alpha.
        """
        cells = [cell for _, cell in self.cells(base)]
        return min(
            cells, key=lambda c: (c.mean, self.difference(c, "personal") is None), default=None
        )


def check(kind: type[R], table: Mapping[str, Any], where: str) -> R:
    """A JSON object that was read from `where`, as a record of this kind. Raises RunError."""
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        first, more = error.errors()[0], error.error_count() - 1
        key = ".".join(str(part) for part in first["loc"])
        found = "" if isinstance(first["input"], dict) else f", found {first['input']!r}"
        rest = f" (and {more} more like it)" if more else ""
        message = first["msg"].removeprefix("Value error, ")
        raise RunError(f"{where}: {key}: {message}{found}{rest}") from None
