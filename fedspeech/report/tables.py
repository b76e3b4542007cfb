"""The tables of a report as data. `terminal.py` renders them with Rich, `markup.py` as HTML.

Tables 1, 2 and 3 are those of Mdhaffar, Tommasi, Estève, SPECOM 2021, for this run.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedspeech.report.results import (
    Alpha,
    Cell,
    Decodings,
    Interval,
    PartStatistics,
    Results,
)

CHOSEN = "chosen on the device"


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; a difference is written with its sign."""

    mean: float
    low: float
    high: float
    signed: bool = False

    @classmethod
    def of(cls, interval: Interval, signed: bool = False) -> "Estimate":
        """The mean and the interval of one figure of the results."""
        return cls(interval.mean, interval.low, interval.high, signed)

    def texts(self) -> tuple[str, str, str]:
        """Mean, low and high with two decimals; zero never has a minus."""
        sign = "+" if self.signed else ""
        mean, low, high = (f"{value:{sign}z.2f}" for value in (self.mean, self.low, self.high))
        return mean, low, high


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first `words` columns are words, all others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Estimate, ...], ...]
    words: int = 1
    notes: tuple[str, ...] = ()
    marked: frozenset[int] = frozenset()
    """Rows that stand out: what a device can know for itself."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show: no rows, or no columns beside the names."""
        return len(self.columns) < 2 or not self.rows


def fallen_back(what: str, tensors: Iterable[str]) -> str:
    """A note where hashed diffs were not sent as they were asked for."""
    names = ", ".join(sorted(set(tensors)))
    return f"{what}: additive, for |value| times a sum moves no zeros: {names}"


def skipped(utterances: int) -> list[str]:
    """A note where training utterances could not be learned from."""
    said = f"Skipped: {utterances:,} training utterances with too many units for their length."
    return [said] if utterances else []


def corpus(results: Results) -> Table:
    """Table 1: what each part of the corpus holds, one column per part."""
    names = ("speakers", "utterances", "words", "hours", "mean, s", "least, s", "most, s")
    rows = zip(names, *(_statistics(part) for part in results.corpus), strict=True)
    columns = ("", *(part.part for part in results.corpus))
    notes = ("mean, least, most: the seconds of speech of one speaker.",)
    return Table("Table 1: the corpus", columns, tuple(rows), notes=notes)


def _statistics(part: PartStatistics) -> tuple[str, ...]:
    counts = (part.speakers, part.utterances, part.words)
    spread = part.seconds_per_speaker
    seconds = (spread.mean, spread.least, spread.most)
    return (
        *(f"{count:,}" for count in counts),
        f"{part.hours:.2f}",
        *(f"{value:.1f}" for value in seconds),
    )


def models(results: Results) -> Table:
    """Table 2: the generic and the personal models, and what fine-tuning gained."""
    rows: list[tuple[str | Estimate, ...]] = [
        (name, Estimate.of(wer), f"{wer.pooled:.2f}")
        for name, wer in (("G", results.generic), ("P_s", results.personal))
    ]
    if results.gain:
        rows.append(("G minus P_s, paired", Estimate.of(results.gain, signed=True), ""))
    return Table(
        "Table 2: generic and personal models", ("model", "WER %", "pooled %"), tuple(rows)
    )


def bases(results: Results) -> Table:
    """Table 3: for each base its best alpha, and what the devices chose for themselves."""
    rows: list[tuple[str | Estimate, ...]] = []
    marked = []
    for base in results.bases:
        for cell in (results.best(base), results.chosen(base)):
            if cell is None:
                continue
            if cell.alpha == "chosen":
                marked.append(len(rows))
            paired = results.difference(cell, "personal")
            difference = Estimate.of(paired, signed=True) if paired else ""
            rows.append((base, _alpha(cell.alpha), Estimate.of(cell), difference))
    notes = [
        "Each alpha given as a number is the best one on test_s itself, so its WER looks better "
        "than new speech would be."
    ]
    if marked:
        notes.append(
            f"In the rows that say '{CHOSEN}' every device chose its alpha on the last 20 % of its "
            "train_s, without a look at test_s."
        )
    notes += [_decodings(base, found) for base, found in sorted(results.decodings.items())]
    return Table(
        "Table 3: the best mix of each base",
        ("base", "alpha", "WER %", "minus P_s"),
        tuple(rows),
        words=2,
        notes=tuple(notes),
        marked=frozenset(marked),
    )


def _decodings(base: str, found: Decodings) -> str:
    share = 100 * found.used / max(found.exhaustive, 1)
    says = f"{base}: {found.used:,} of {found.exhaustive:,} utterance decodings ({share:.1f} %)"
    if not found.cut:
        return f"{says}."
    return f"{says}; for {found.cut:,} speakers the budget decided, not the confidence asked for."


def grid(results: Results) -> Table:
    """Every cell of Figure 3: a row per alpha, a column per base."""
    return _grid(results, "WER % of every mix", Estimate.of)


def pooled(results: Results) -> Table:
    """As `grid`, with all errors over all words."""
    return _grid(results, "Pooled WER % of every mix", lambda cell: f"{cell.pooled:.2f}")


def _grid(results: Results, title: str, show: Callable[[Cell], str | Estimate]) -> Table:
    found = {(cell.base, cell.alpha): cell for cell in results.table}
    numbers = sorted({alpha for base in results.bases for alpha, _ in results.cells(base)})
    alphas: list[Alpha] = [*numbers, "chosen"]
    rows = []
    for alpha in alphas:
        cells = [found.get((base, alpha)) for base in results.bases]
        if any(cells):
            rows.append((_alpha(alpha), *(show(cell) if cell else "" for cell in cells)))
    marked = frozenset(i for i, row in enumerate(rows) if row[0] == CHOSEN)
    return Table(title, ("alpha", *results.bases), tuple(rows), marked=marked)


def _alpha(alpha: Alpha) -> str:
    return CHOSEN if alpha == "chosen" else f"{alpha:g}"


def differences(results: Results) -> Table:
    """The paired differences that the run made."""
    names = {"personal": "P_s", "generic": "G"}
    rows = tuple(
        (
            row.base,
            _alpha(row.alpha),
            names[row.against],
            Estimate.of(row, signed=True),
        )
        for row in results.differences
    )
    return Table("Paired differences", ("base", "alpha", "minus", "WER points"), rows, words=3)


def speakers(results: Results) -> Table:
    """Who took part, and each one's WER on its own test_s."""
    alphas = results.chosen_alpha.alphas if results.chosen_alpha else {}
    rows = tuple(
        (
            row.speaker,
            "" if row.seconds is None else f"{row.seconds:.1f}",
            f"{row.words:,}",
            f"{row.generic:.2f}",
            f"{row.personal:.2f}",
            f"{row.gain:+z.2f}",
            "" if row.chosen is None else f"{row.chosen:.2f}",
            f"{alphas[row.speaker]:g}" if row.speaker in alphas else "",
        )
        for row in results.per_speaker
    )
    columns = ("speaker", "seconds", "words", "G", "P_s", "gain", "chosen", "alpha")
    base = results.chosen_alpha.base if results.chosen_alpha else None
    notes = ["seconds: of train_s; words: of test_s."]
    if base:
        notes.append(f"chosen: the mix with {base}, at the alpha that the device chose.")
    return Table("WER % of each speaker", columns, rows, notes=tuple(notes))


def failures(results: Results) -> Table:
    """Who did not answer what, and why."""
    rows = tuple((row.speaker, str(row.round), row.message, row.reason) for row in results.failures)
    return Table("Failures", ("speaker", "round", "message", "reason"), rows, words=4)


def peers(results: Results, base: str) -> Table:
    """Whose models made one base, speaker by speaker."""
    chosen = sorted(results.peers[base].items())
    rows = tuple((speaker, ", ".join(names)) for speaker, names in chosen)
    return Table(f"Peers of {base}", ("speaker", "peers"), rows, words=2)
