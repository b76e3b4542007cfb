"""`results.json` of a run on diffs: errors, regret and bytes of every cell, over all seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedspeech import evaluation
from fedspeech.config.neural_diff import NeuralDiffConfig
from fedspeech.training.neural_diff.cells import Cell
from fedspeech.training.neural_diff.task import Task

DIGITS = 4
Figures = Mapping[Cell, Mapping[str, Any]]


class Generation:
    """The cells of one generation, each over all seeds, and their resampled rates.

    Intervals are of the mean over the seeds: the errors of an utterance are summed over them. All
    cells see the same draws of speakers and utterances, so that differences are paired.
    """

    def __init__(self, figures: Figures, seeds: Sequence[int], number: int) -> None:
        self._figures, self._seeds = figures, seeds
        first = seeds[0]
        self.cells = [c for c in figures if (c.seed, c.generation) == (first, number)]
        speakers = sorted(figures[self.cells[0]]["words"])
        words = figures[self.cells[0]]["words"]
        self.words = {s: len(seeds) * np.array(words[s], dtype=np.int64) for s in speakers}
        self.errors = {s: np.stack([self._errors(c, s) for c in self.cells]) for s in speakers}
        self._samples = evaluation.resample(self.errors, self.words, first)

    def _of_seeds(self, cell: Cell) -> list[Mapping[str, Any]]:
        return [self._figures[cell._replace(seed=seed)] for seed in self._seeds]

    def _errors(self, cell: Cell, speaker: str) -> np.ndarray:
        """Of each utterance, summed over the seeds; int64."""
        found = [each["errors"][speaker] for each in self._of_seeds(cell)]
        summed: np.ndarray = np.array(found, dtype=np.int64).sum(0)
        return summed

    def row(self, cell: Cell) -> dict[str, Any]:
        """One row of the table."""
        place = self.cells.index(cell)
        own, words = [errors[place] for errors in self.errors.values()], list(self.words.values())
        of_seeds = self._of_seeds(cell)
        return {
            "model": cell.model,
            "method": cell.method,
            "ratio": cell.ratio,
            "generation": cell.generation,
            **_interval(evaluation.mean_rate(own, words), self._samples[:, place]),
            "pooled": round(evaluation.pooled_rate(own, words), DIGITS),
            "seeds": [round(_rate(each), DIGITS) for each in of_seeds],
            "bytes": [each["bytes"] for each in of_seeds],
            "full": of_seeds[0]["full"],
            "sent": round(float(np.mean([each["sent"] for each in of_seeds])), 6),
            "regret": self._difference(cell, cell._replace(model="BL", method=None, ratio=None)),
            "minus_blc": self._difference(cell, cell._replace(model="BLC"))
            if cell.model == "diff"
            else None,
        }

    def _difference(self, cell: Cell, other: Cell) -> dict[str, float]:
        """cell - other in points, paired."""
        left, right = self.cells.index(cell), self.cells.index(other)
        words = list(self.words.values())
        means = [
            evaluation.mean_rate([errors[i] for errors in self.errors.values()], words)
            for i in (left, right)
        ]
        return _interval(means[0] - means[1], self._samples[:, left] - self._samples[:, right])


def _interval(mean: float, samples: np.ndarray) -> dict[str, float]:
    low, high = evaluation.interval(samples)
    named = {"mean": mean, "low": low, "high": high}
    return {name: round(value, DIGITS) for name, value in named.items()}


def _rate(figures: Mapping[str, Any]) -> float:
    """The mean over speakers with one seed, in percent."""
    errors, words = ([np.array(a) for a in figures[n].values()] for n in ("errors", "words"))
    return evaluation.mean_rate(errors, words)


def assemble(settings: NeuralDiffConfig, task: Task, figures: Figures) -> dict[str, Any]:
    """All of results.json; rates in percent, `sent` a share of the matrices' values.

    `regret` is a cell's rate minus that of BL in its generation, `minus_blc` a diff's minus that of
    the BLC of its method and ratio.
    """
    generations = [
        Generation(figures, settings.seeds, number) for number in range(len(task.generations))
    ]
    return {
        "kind": settings.kind,
        "name": settings.name,
        "metric": task.metric,
        "seed": settings.seed,
        "seeds": list(settings.seeds),
        "speakers": len(generations[0].words),
        "generations": task.generations,
        "table": [one.row(cell) for one in generations for cell in one.cells],
    }
