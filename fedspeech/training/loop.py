"""The local loop: one model, one set of utterances, one optimizer. Plain on purpose."""

import math

import torch

from fedspeech.accelerator import autocast, place
from fedspeech.training import criteria, thrift
from fedspeech.training.course import Course, Update
from fedspeech.training.optimizers import Optimizers, adamw


class Loop:
    """Trains a model in place, epoch by epoch, on the accelerator where there is one.

    The gradients of `accumulated` minibatches make one step.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        course: Course,
        optimizer: Optimizers = adamw,
        accumulated: int = 1,
    ) -> None:
        self.model = model.to(place())
        self.course, self.settings = course, course.settings
        self.criterion = criteria.of(model)
        thrift.settle(self.model, *course.largest_batch)
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = optimizer(learning, self.settings.weight_decay)
        self._accumulated = accumulated

    def epoch(self, number: int) -> float:
        """Train one epoch (counted from 0); the mean loss in nats per utterance."""
        self.model.train()
        total, count = 0.0, self.course.updates_per_epoch
        with self.course.draws(number).taken_up():
            updates = self.course.updates(number)
            for done in range(0, count, self._accumulated):
                together = min(self._accumulated, count - done)
                self.optimizer.zero_grad()
                total += sum(self._learn(next(updates), together) for _ in range(together))
                self._step()
        return total / len(self.course.utterances)

    def has_diverged(self, loss: float) -> bool:
        """Whether the loss of an epoch, or a value of the model after it, is no number: the loss
        does not show what the last update has done.
        """
        values = self.model.state_dict().values()
        return not (math.isfinite(loss) and all(bool(each.isfinite().all()) for each in values))

    def _learn(self, update: Update, together: int) -> float:
        """Add the gradient of one minibatch among so many; its summed loss."""
        losses = self._heard(update)
        torch.autograd.backward(losses.mean() / together)
        return float(losses.detach().sum())

    def _heard(self, update: Update) -> torch.Tensor:
        """The losses of a minibatch, with the rate and the dropout that hold for it."""
        self._set(update.learning_rate, update.dropout)
        with autocast(self.settings.precision):
            return self.losses(update)

    def losses(self, update: Update) -> torch.Tensor:
        """Of each utterance (batch,)."""
        batch = update.batch.to(place())
        output, lengths = self.model(batch.features, batch.lengths)
        return self.criterion(output, lengths, update.references)

    def _step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_norm)
        self.optimizer.step()

    def _set(self, learning_rate: float, dropout: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
