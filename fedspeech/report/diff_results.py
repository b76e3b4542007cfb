"""`results.json` of a run of kind `neural-diff`, typed: what the report may count on."""

from typing import Literal

from fedspeech.report.results import Interval, Record, Wer

DIFF, BLC = "diff", "BLC"


class Row(Wer):
    """One model of one generation; rates are means over the seeds, and of these over speakers.

    `bytes` are what was sent with each seed, `full` those of a whole model, and `sent` is the share
    of its matrices' values that were sent. Regret is the rate minus BL's. `additive` are matrices
    whose hashed diff fell back to the additive form.
    """

    model: Literal["BL", "BL∞", "BLC", "diff"]
    method: str | None = None
    ratio: float | None = None
    generation: int
    seeds: tuple[float, ...]
    bytes: tuple[int, ...]
    full: int
    sent: float
    regret: Interval
    minus_blc: Interval | None = None
    additive: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """What it is called through all generations."""
        named = "" if self.ratio is None else f" {self.method} {self.ratio:g}x"
        return f"{self.model}{named}"


class Generation(Record):
    """What a generation knows more than the one before."""

    label: str


class DiffResults(Record):
    """`results.json` of a run of kind `neural-diff`."""

    kind: Literal["neural-diff"]
    name: str
    metric: str
    seed: int
    seeds: tuple[int, ...]
    speakers: int
    skipped: int = 0
    generations: tuple[Generation, ...]
    table: tuple[Row, ...]

    @property
    def lines(self) -> dict[str, list[Row]]:
        """The rows of each line of models by generation: BL, BL∞, then ratio by ratio."""
        found: dict[str, list[Row]] = {}
        ordered = sorted(self.table, key=lambda row: row.generation)
        for row in sorted(ordered, key=lambda row: row.ratio or 0):
            found.setdefault(row.line, []).append(row)
        return found

    @property
    def ratios(self) -> tuple[float, ...]:
        """From the least to the greatest."""
        return tuple(sorted({row.ratio for row in self.table if row.ratio is not None}))

    @property
    def title(self) -> str:
        """What the run was."""
        seeds = ", ".join(map(str, self.seeds))
        return f"{self.name}: {len(self.generations)} generations, seeds {seeds}"
