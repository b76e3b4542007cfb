"""How a student learns with a teacher: the local loop, with a model or a loss of its own."""

import torch

from fedspeech import seeding
from fedspeech.accelerator import place
from fedspeech.config.distillation import DistillationTraining, ReplacingSettings
from fedspeech.models.rnnt import RNNT
from fedspeech.training.course import Course, Update
from fedspeech.training.distill import lattice, schedules
from fedspeech.training.distill.hybrid import Hybrid
from fedspeech.training.loop import Loop
from fedspeech.training.optimizers import OPTIMIZERS


def alone(model: torch.nn.Module, course: Course, training: DistillationTraining) -> Loop:
    """A model that learns without a teacher."""
    return Loop(model, course, OPTIMIZERS[training.optimizer], training.accumulated)


class ReplacingLoop(Loop):
    """Modules are chosen anew for every minibatch; the loss is that of the transducer alone."""

    def __init__(
        self,
        hybrid: Hybrid,
        course: Course,
        training: DistillationTraining,
        replacing: ReplacingSettings,
        name: tuple[int, int, str, str],
    ) -> None:
        """`name` is (seed, round, speaker, purpose) of the draws."""
        super().__init__(hybrid, course, OPTIMIZERS[training.optimizer], training.accumulated)
        self._hybrid, self._replacing, self._name = hybrid, replacing, name

    def epoch(self, number: int) -> float:
        """Train one epoch; its choices are drawn apart from the course, which other models go."""
        seed, round, speaker, purpose = self._name
        purpose = f"{purpose}, replacing, epoch {number}"
        self._draw = seeding.generator(seed, round, speaker, purpose)
        return super().epoch(number)

    def losses(self, update: Update) -> torch.Tensor:
        """Of each utterance (batch,), with the modules of this minibatch."""
        self._hybrid.choose(schedules.rate(self._replacing, update.done), self._draw)
        return super().losses(update)


class LatticeLoop(Loop):
    """The student learns from the references and from what the teacher says of them."""

    def __init__(
        self,
        student: RNNT,
        teacher: RNNT,
        course: Course,
        training: DistillationTraining,
        alpha: float,
    ) -> None:
        super().__init__(student, course, OPTIMIZERS[training.optimizer], training.accumulated)
        self._student, self._alpha = student, alpha
        self._teacher = teacher.requires_grad_(False).eval().to(place())

    def losses(self, update: Update) -> torch.Tensor:
        """Of each utterance (batch,), with the divergence from the teacher."""
        batch = update.batch.to(place())
        encoded, lengths = self._student(batch.features, batch.lengths)
        with torch.no_grad():
            taught, _ = self._teacher(batch.features, batch.lengths)
        heard = (encoded, taught)
        return lattice.loss(
            self._student, self._teacher, self._alpha, heard, lengths, update.references
        )
