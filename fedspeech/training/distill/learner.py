"""One cell of a distillation: trained from its beginning, or from where it was interrupted."""

from dataclasses import dataclass
from pathlib import Path

from fedspeech.config.distillation import KD, STUDENT, TEACHER, DistillationConfig
from fedspeech.errors import DivergedError
from fedspeech.models.rnnt import RNNT
from fedspeech.tensors import Tensors
from fedspeech.training import checkpoint
from fedspeech.training.distill.cells import Cell
from fedspeech.training.distill.hybrid import Hybrid, inherit
from fedspeech.training.distill.loops import LatticeLoop, ReplacingLoop, alone
from fedspeech.training.distill.modules import cut
from fedspeech.training.distill.task import Task, given
from fedspeech.training.loop import Loop
from fedspeech.training.pool import epoch_over


@dataclass(frozen=True)
class Learned:
    """A model, and the mean loss per utterance in each epoch that it was trained."""

    model: RNNT
    losses: list[float]


def learn(
    task: Task, settings: DistillationConfig, cell: Cell, teacher: Tensors | None, kept: Path
) -> Learned:
    """Train a cell; `teacher` is the model of its base, `kept` the file of its checkpoint.

    Raises DivergedError where the training diverges.
    """
    model = task.model(cell.row, cell.seed)
    if cell.row == TEACHER and settings.teacher.file is not None:
        model.load_state_dict(given(settings))
        return Learned(model, [])
    taught = task.model(TEACHER, cell.seed)
    if teacher is not None:
        taught.load_state_dict(teacher)
    loop = _loop(task, settings, cell, model, taught)
    return Learned(model, _train(loop, cell, kept))


def _loop(task: Task, settings: DistillationConfig, cell: Cell, model: RNNT, teacher: RNNT) -> Loop:
    course, training = task.course(cell.seed), settings.training
    if cell.row in (TEACHER, STUDENT):
        return alone(model, course, training)
    if cell.row == KD:
        return LatticeLoop(model, teacher, course, training, settings.kd.alpha)
    if cell.taught:
        inherit(teacher, model)
        teacher.requires_grad_(False)
    hybrid = Hybrid(teacher, model, cut(teacher, model, settings.modules))
    name = (cell.seed, 0, "", cell.row)
    return ReplacingLoop(hybrid, course, training, settings.replacing[cell.row], name)


def _train(loop: Loop, cell: Cell, kept: Path) -> list[float]:
    """Train to the end; the losses of all epochs."""
    found = checkpoint.load(kept, loop, "losses")
    losses: list[float] = found[0] if found else []
    for epoch in range(len(losses), loop.settings.epochs):
        losses.append(loop.epoch(epoch))
        if loop.has_diverged(losses[-1]):
            raise DivergedError(
                f"{cell.name}: training diverged in epoch {epoch + 1} (loss {losses[-1]:.3g}); "
                f"training.learning_rate = {loop.settings.learning_rate:g} may be too large"
            )
        checkpoint.save(kept, loop, losses=losses)
        epoch_over(cell, epoch, loop.settings.epochs, losses[-1])
    return losses
