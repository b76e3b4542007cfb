"""The loop of a learner: gradient after gradient, and in between what its method does."""

import math
from collections.abc import Iterable

import torch

from fedspeech.errors import DivergedError
from fedspeech.training.loop import Loop
from fedspeech.training.parallel.group import losing
from fedspeech.training.parallel.method import Method
from fedspeech.training.parallel.share import Part, Share
from fedspeech.training.parallel.watch import Watch


class ParallelLoop(Loop):
    """One learner's model and optimizer, and the parts that it learns."""

    def __init__(self, model: torch.nn.Module, share: Share, watch: Watch, name: str) -> None:
        super().__init__(model, share)
        self.share, self.watch, self._name = share, watch, name

    def learn(self, method: Method, number: int) -> None:
        """One part: its gradient, and what the method makes of it.

        Raises DivergedError, naming this learner, where model, loss or gradient is no number;
        nothing of it has been sent then.
        """
        part = self.share.part(number)
        self.check(_sum(self.model.parameters()), part)
        self.model.train()
        self.optimizer.zero_grad()
        method.begin(part)
        with self.share.drawn(number).taken_up(), self.watch.computes():
            losses = self._heard(self.share.minibatch(part))
            loss = float(losses.detach().sum())
            self.check(loss, part)
            with losing():
                torch.autograd.backward(losses.sum() * method.weight(part))
        self.check(_sum(p.grad for p in self.model.parameters() if p.grad is not None), part)
        method.exchange(part)
        self.watch.learned(len(part.chosen), loss)

    def step(self) -> None:
        """Clip the gradient and let the optimizer take its step."""
        self._step()

    def check(self, value: float, part: Part) -> None:
        """Raise DivergedError, naming this learner, where a value is no number."""
        if not math.isfinite(value):
            epoch = self.share.epoch_of(part.number) + 1
            raise DivergedError(
                f"{self._name}: training diverged in epoch {epoch}, part {part.number} "
                f"(model, loss or gradient {value:g}); the rate {self.rate:g} may be too large"
            )

    @property
    def rate(self) -> float:
        """The learning rate of the last minibatch."""
        return float(self.optimizer.param_groups[0]["lr"])


def _sum(tensors: Iterable[torch.Tensor]) -> float:
    """Infinite or no number where one of their values is."""
    return float(torch.stack([tensor.detach().sum() for tensor in tensors]).sum())
