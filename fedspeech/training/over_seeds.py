"""Errors of cells that were trained with several seeds: rates, intervals, paired differences."""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Generic, TypeVar

import numpy as np

from fedspeech import evaluation
from fedspeech.evaluation import Counts
from fedspeech.training.pool import Figures

DIGITS = 4
C = TypeVar("C")


def counted(counts: Mapping[str, Counts]) -> Figures:
    """Errors and words by speaker, as a cell's figures hold them."""
    return {
        "errors": {speaker: each.errors.tolist() for speaker, each in counts.items()},
        "words": {speaker: each.words.tolist() for speaker, each in counts.items()},
    }


class OverSeeds(Generic[C]):
    """Cells that are judged on the same utterances, each over all seeds.

    Intervals are of the mean over seeds, and seeds are resampled as speakers and utterances are: a
    training that fails with one of three seeds has a wide interval. All cells see the same draws,
    so that differences are paired.
    """

    def __init__(
        self,
        cells: Sequence[C],
        figures: Callable[[C], Sequence[Figures]],
        seed: int,
        speakers: Set[str] | None = None,
    ) -> None:
        """`figures` gives those of a cell with each seed; `speakers` are all, or some of them."""
        self.cells = list(cells)
        found = {cell: figures(cell) for cell in self.cells}
        spoken: Mapping[str, list[int]] = found[self.cells[0]][0]["words"]
        chosen = sorted(spoken if speakers is None else speakers & set(spoken))
        words = {s: np.array(spoken[s], dtype=np.int64) for s in chosen}
        errors = {s: np.stack([_of_seeds(found[cell], s) for cell in self.cells]) for s in chosen}
        self._samples = evaluation.resample(errors, words, seed)
        self.words = {s: len(found[self.cells[0]]) * each for s, each in words.items()}
        self.errors = {s: each.sum(1) for s, each in errors.items()}

    def rate(self, cell: C) -> dict[str, float]:
        """Mean over speakers with its interval, in percent, and all errors over all words."""
        place, words = self.cells.index(cell), list(self.words.values())
        own = [errors[place] for errors in self.errors.values()]
        return {
            **_interval(evaluation.mean_rate(own, words), self._samples[:, place]),
            "pooled": round(evaluation.pooled_rate(own, words), DIGITS),
        }

    def difference(self, cell: C, other: C) -> dict[str, float]:
        """cell - other in points, paired."""
        left, right = self.cells.index(cell), self.cells.index(other)
        words = list(self.words.values())
        means = [
            evaluation.mean_rate([errors[i] for errors in self.errors.values()], words)
            for i in (left, right)
        ]
        return _interval(means[0] - means[1], self._samples[:, left] - self._samples[:, right])


def rate_of(figures: Mapping[str, Any]) -> float:
    """The mean over speakers with one seed, in percent."""
    errors, words = ([np.array(a) for a in figures[n].values()] for n in ("errors", "words"))
    return round(evaluation.mean_rate(errors, words), DIGITS)


def _of_seeds(figures: Sequence[Figures], speaker: str) -> np.ndarray:
    """Errors of each of a speaker's utterances with each seed, int64 (seeds, utterances)."""
    return np.array([each["errors"][speaker] for each in figures], dtype=np.int64)


def _interval(mean: float, samples: np.ndarray) -> dict[str, float]:
    low, high = evaluation.interval(samples)
    named = {"mean": mean, "low": low, "high": high}
    return {name: round(value, DIGITS) for name, value in named.items()}
