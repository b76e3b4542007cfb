"""`results.json` of a distillation: every row over all seeds, and how far apart the rows are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedspeech.config.distillation import (
    KD,
    STUDENT,
    TEACHER,
    DistillationConfig,
    ReplacingSettings,
)
from fedspeech.training.distill.cells import Cell, shipped
from fedspeech.training.distill.task import Task
from fedspeech.training.over_seeds import OverSeeds, rate_of
from fedspeech.training.pool import Figures

USABLE = 40.0
"""WER in percent that a teacher may have at most: nothing follows from a comparison with a worse
one."""
BASELINES = (STUDENT, KD)


class Rows:
    """The rows of the table, each over all seeds."""

    def __init__(
        self,
        figures: Mapping[Cell, Figures],
        seeds: Sequence[int],
        inheriting: Sequence[str] = (),
    ) -> None:
        """Of the rows, those that are `inheriting` replace nothing: with them others are compared
        as well.
        """
        self._baselines = (*BASELINES, *inheriting)
        self._figures = {(cell.row, cell.seed): each for cell, each in figures.items()}
        self._seeds = seeds
        self.names = list(dict.fromkeys(cell.row for cell in figures))
        self.judged = OverSeeds(self.names, self._of_seeds, seeds[0])

    def _of_seeds(self, row: str) -> list[Figures]:
        return [self._figures[row, seed] for seed in self._seeds]

    @property
    def usable(self) -> bool | None:
        """Whether the teacher is one at all, with every seed; None where there is none."""
        if TEACHER not in self.names:
            return None
        return max(map(rate_of, self._of_seeds(TEACHER))) <= USABLE

    def of_set(self, speakers: set[str]) -> OverSeeds[str]:
        """The same rows on some of the speakers."""
        return OverSeeds(self.names, self._of_seeds, self._seeds[0], speakers)

    def row(
        self, name: str, sets: Mapping[str, OverSeeds[str]], replacing: ReplacingSettings | None
    ) -> dict[str, Any]:
        """One row of the table; `replacing` is how it replaces modules, if it does."""
        of_seeds = self._of_seeds(name)
        losses = np.array([each["losses"] for each in of_seeds])
        return {
            "row": name,
            "parameters": of_seeds[0]["parameters"],
            "replacing": None if replacing is None else replacing.model_dump(mode="json"),
            **self.judged.rate(name),
            "seeds": [rate_of(each) for each in of_seeds],
            "sets": {value: judged.rate(name) for value, judged in sets.items()},
            "losses": np.round(losses.mean(0), 4).tolist(),
            "minus": {
                other: self.judged.difference(name, other)
                for other in self._beside(name)
                if other in self.names
            },
        }

    def _beside(self, name: str) -> Sequence[str]:
        """The baselines that a row is compared with: all of them, or those before itself."""
        every = self._baselines
        return every[: every.index(name)] if name in every else every


def assemble(
    settings: DistillationConfig, task: Task, figures: Mapping[Cell, Figures]
) -> dict[str, Any]:
    """All of results.json; rates in percent.

    `minus` is a row's rate minus those of the baselines, paired; of two baselines the later has it.
    """
    inheriting = [name for name, way in settings.replacing.items() if way.inherits]
    rows = Rows(figures, settings.seeds, inheriting)
    sets = {value: rows.of_set(speakers) for value, speakers in task.sets.items()}
    table = [rows.row(name, sets, settings.replacing.get(name)) for name in rows.names]
    ships = shipped(settings)
    return {
        "kind": settings.kind,
        "name": settings.name,
        "seed": settings.seed,
        "seeds": list(settings.seeds),
        "speakers": len(rows.judged.words),
        "skipped": task.skipped,
        "teacher": settings.teacher.name,
        "student": settings.student.name,
        "usable": rows.usable,
        "shipped": None if ships is None else ships.row,
        "table": table,
    }
