"""The loop of a learner: gradient after gradient, and in between what its method does."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch

from fedspeech.accelerator import place
from fedspeech.errors import DivergedError
from fedspeech.training.course import Update
from fedspeech.training.loop import Loop
from fedspeech.training.parallel.group import losing
from fedspeech.training.parallel.method import Method
from fedspeech.training.parallel.share import Share
from fedspeech.training.parallel.watch import Watch


class Losses(torch.nn.Module):
    """A model and its criterion: speech and references in, losses (batch,) out.

    So DistributedDataParallel sees from the losses which parameters a minibatch has used: a
    transducer's criterion has parameters of the model take part as well.
    """

    def __init__(self, model: torch.nn.Module, criterion: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.model, self._criterion = model, criterion

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor, references: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """-log p of each reference in nats (batch,)."""
        return self._criterion(*self.model(features, lengths), references)


class ParallelLoop(Loop):
    """One learner's model and optimizer, and the parts that it learns."""

    def __init__(self, model: torch.nn.Module, share: Share, watch: Watch, name: str) -> None:
        super().__init__(model, share)
        self.share, self.watch, self._name = share, watch, name
        self.alone = Losses(self.model, self.criterion)
        self.hears: torch.nn.Module = self.alone
        """What minibatches go through: that, or what joins it to others."""
        self._number = 0

    def learn(self, method: Method, number: int) -> None:
        """One part: its gradient, and what the method makes of it.

        Raises DivergedError, naming this learner, where model, loss or gradient is no number;
        nothing of it has been sent then.
        """
        self.begins(number)
        part = self.share.part(number)
        self.sound(self.model.parameters())
        self.model.train()
        self.optimizer.zero_grad()
        method.begin(part)
        with self.share.drawn(number).taken_up(), self.watch.computes():
            losses = self._heard(self.share.minibatch(part))
            loss = float(losses.detach().sum())
            self.check(loss)
            with losing():
                torch.autograd.backward(losses.sum() * method.weight(part))
            # On a GPU it is there when it is looked at, and not before.
            self.sound(p.grad for p in self.model.parameters() if p.grad is not None)
        method.exchange(part)
        self.watch.learned(len(part.chosen), loss)

    def losses(self, update: Update) -> torch.Tensor:
        """Of each utterance (batch,)."""
        batch = update.batch.to(place())
        found: torch.Tensor = self.hears(batch.features, batch.lengths, update.references)
        return found

    def step(self) -> None:
        """Clip the gradient and let the optimizer take its step.

        Raises DivergedError where it leads to what is no number: nobody has seen it yet.
        """
        with self.watch.steps():
            self._step()
        self.sound(self.model.parameters())

    def begins(self, number: int) -> None:
        """What is wrong from now on is so in this part."""
        self._number = number

    def sound(self, tensors: Iterable[torch.Tensor]) -> None:
        """Raise DivergedError, naming this learner, where a value of them is no number."""
        self.check(float(torch.stack([tensor.detach().sum() for tensor in tensors]).sum()))

    def check(self, value: float) -> None:
        """Raise DivergedError, naming this learner, where a value is no number."""
        if not math.isfinite(value):
            epoch = self.share.epoch_of(self._number) + 1
            raise DivergedError(
                f"{self._name}: training diverged in epoch {epoch}, part {self._number} "
                f"(model, loss or gradient {value:g}); the rate {self.rate:g} may be too large"
            )

    @property
    def rate(self) -> float:
        """The learning rate of the last minibatch."""
        return float(self.optimizer.param_groups[0]["lr"])
