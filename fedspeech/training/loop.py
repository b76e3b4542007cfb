"""The local loop: one model, one set of utterances, one optimizer. Plain on purpose."""

import torch

from fedspeech.accelerator import autocast, place
from fedspeech.training import criteria, thrift
from fedspeech.training.course import Course, Update


class Loop:
    """Trains a model in place, epoch by epoch, on the accelerator where there is one."""

    def __init__(self, model: torch.nn.Module, course: Course) -> None:
        self.model = model.to(place())
        self.course, self.settings = course, course.settings
        self.criterion = criteria.of(model)
        thrift.settle(self.model, *course.largest_batch)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=0.0, weight_decay=self.settings.weight_decay, fused=True
        )

    def epoch(self, number: int) -> float:
        """Train one epoch (counted from 0); the mean loss in nats per utterance."""
        self.model.train()
        with self.course.draws(number).taken_up():
            total = sum(self._update(update) for update in self.course.updates(number))
        return total / len(self.course.utterances)

    def _update(self, update: Update) -> float:
        self._set(update.learning_rate, update.dropout)
        batch = update.batch.to(place())
        with autocast(self.settings.precision):
            output, lengths = self.model(batch.features, batch.lengths)
            losses = self.criterion(output, lengths, update.references)
        self.optimizer.zero_grad()
        torch.autograd.backward(losses.mean())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_norm)
        self.optimizer.step()
        return float(losses.detach().sum())

    def _set(self, learning_rate: float, dropout: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
