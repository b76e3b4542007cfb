"""What a process does that trains and judges cells; what it makes lies in the run's folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedspeech import corpus, models, tensors
from fedspeech.config.distillation import TEACHER, DistillationConfig
from fedspeech.run_folder import cache_folder
from fedspeech.tensors import state
from fedspeech.training.distill.cells import Cell
from fedspeech.training.distill.learner import learn
from fedspeech.training.distill.task import Task
from fedspeech.training.over_seeds import counted
from fedspeech.training.pool import Figures, checkpoint


@dataclass(frozen=True)
class Bench:
    """One run, as a worker sees it."""

    settings: DistillationConfig
    task: Task
    run: Path

    def finish(self, cell: Cell) -> Figures:
        """Train and judge a cell, and write its model with its description."""
        teacher = None if cell.base is None else tensors.read(file(self.run, cell.base))
        learned = learn(self.task, self.settings, cell, teacher, checkpoint(self.run, cell))
        figures = {
            "parameters": models.parameters(learned.model),
            "losses": learned.losses,
            **counted(self.task.errors(learned.model)),
        }
        path = file(self.run, cell)
        about = self.task.teacher if cell.row == TEACHER else self.task.student
        about.write(path.with_suffix(".json"))
        tensors.write(path, state(learned.model))
        return figures


def file(run: Path, cell: Cell) -> Path:
    """Where a finished cell's model is; its description lies beside it."""
    return run / "models" / f"{cell.name}.safetensors"


def bench(settings: DistillationConfig, run: Path) -> Callable[[Cell], Figures]:
    """What finishes a cell of this run in this process, with the speech read."""
    speech = corpus.load(settings.corpus)
    return Bench(settings, Task(settings, speech, cache_folder() / "features"), run).finish
