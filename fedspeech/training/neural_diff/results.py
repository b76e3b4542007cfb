"""`results.json` of a run on diffs: errors, regret and bytes of every cell, over all seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedspeech.config.neural_diff import NeuralDiffConfig
from fedspeech.training.neural_diff.cells import Cell
from fedspeech.training.neural_diff.task import Task
from fedspeech.training.over_seeds import OverSeeds, rate_of

Figures = Mapping[Cell, Mapping[str, Any]]


class Generation:
    """The cells of one generation, each over all seeds."""

    def __init__(self, figures: Figures, seeds: Sequence[int], number: int) -> None:
        self._figures, self._seeds = figures, seeds
        first = seeds[0]
        self.cells = [c for c in figures if (c.seed, c.generation) == (first, number)]
        self._judged = OverSeeds(self.cells, self._of_seeds, first)

    @property
    def speakers(self) -> int:
        """Who tests."""
        return len(self._judged.words)

    def _of_seeds(self, cell: Cell) -> list[dict[str, Any]]:
        return [dict(self._figures[cell._replace(seed=seed)]) for seed in self._seeds]

    def row(self, cell: Cell) -> dict[str, Any]:
        """One row of the table."""
        of_seeds, difference = self._of_seeds(cell), self._judged.difference
        return {
            "model": cell.model,
            "method": cell.method,
            "ratio": cell.ratio,
            "generation": cell.generation,
            **self._judged.rate(cell),
            "seeds": [rate_of(each) for each in of_seeds],
            "bytes": [each["bytes"] for each in of_seeds],
            "full": of_seeds[0]["full"],
            "sent": round(float(np.mean([each["sent"] for each in of_seeds])), 6),
            "additive": sorted({name for each in of_seeds for name in each.get("additive", ())}),
            "regret": difference(cell, cell._replace(model="BL", method=None, ratio=None)),
            "minus_blc": difference(cell, cell._replace(model="BLC"))
            if cell.model == "diff"
            else None,
        }


def assemble(settings: NeuralDiffConfig, task: Task, figures: Figures) -> dict[str, Any]:
    """All of results.json; rates in percent, `sent` a share of the matrices' values.

    `regret` is a cell's rate minus that of BL in its generation, `minus_blc` a diff's minus that of
    the BLC of its method and ratio. `additive` names the matrices whose hashed diff fell back to
    the additive form with one of the seeds.
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
        "speakers": generations[0].speakers,
        "skipped": task.skipped,
        "generations": task.generations,
        "table": [one.row(cell) for one in generations for cell in one.cells],
    }
