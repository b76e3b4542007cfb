"""What a process does that trains and judges cells; what it makes lies in the run's folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fedspeech import corpus, tensors
from fedspeech.config.neural_diff import NeuralDiffConfig
from fedspeech.run_folder import cache_folder
from fedspeech.tensors import Tensors, write_whole
from fedspeech.training.neural_diff import tasks
from fedspeech.training.neural_diff.cells import Cell
from fedspeech.training.neural_diff.learner import Outcome, learn
from fedspeech.training.neural_diff.task import Task
from fedspeech.training.over_seeds import counted
from fedspeech.training.pool import Figures


@dataclass(frozen=True)
class Bench:
    """One run, as a worker sees it."""

    settings: NeuralDiffConfig
    task: Task
    run: Path

    def finish(self, cell: Cell) -> Figures:
        """Train and judge a cell, and write what there is to keep of it."""
        base = None if cell.base is None else tensors.read(self._model(cell.base))
        if cell.model == "BL∞":
            assert base is not None
            outcome = Outcome(base, b"", tensors.size(base), 0.0, 0.0)
        else:
            outcome = learn(self.task, self.settings, cell, base)
        figures = self._figures(cell, outcome)
        if cell.model in ("BL", "diff"):
            tensors.write(self._model(cell), outcome.model)
        if outcome.data:
            data = outcome.data
            path = self.run / "models" / "diffs" / f"{cell.name}.diff"
            write_whole(path, lambda part: part.write_bytes(data))
        return figures

    def _model(self, cell: Cell) -> Path:
        return self.run / "models" / f"{cell.name}.safetensors"

    def _figures(self, cell: Cell, outcome: Outcome) -> Figures:
        known = 0 if cell.model == "BL∞" else cell.generation
        counts = self.task.errors(self._module(known, outcome.model), known, cell.generation)
        return {
            "bytes": outcome.full if outcome.data is None else len(outcome.data),
            "full": outcome.full,
            "sent": outcome.sent,
            "loss": outcome.loss,
            "additive": list(outcome.additive),
            **counted(counts),
        }

    def _module(self, generation: int, model: Tensors) -> torch.nn.Module:
        module = self.task.model(generation)
        module.load_state_dict(model)
        return module


def bench(settings: NeuralDiffConfig, run: Path) -> Callable[[Cell], Figures]:
    """What finishes a cell of this run in this process, with the speech read."""
    speech = corpus.load(settings.corpus)
    task = tasks.task(settings, speech, cache_folder() / "features")
    return Bench(settings, task, run).finish
