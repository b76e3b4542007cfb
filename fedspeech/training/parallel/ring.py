"""Decentralized synchronous SGD: every learner averages its model with both neighbours' on a ring.

Lian, Zhang, Zhang, Hsieh, Zhang, Liu 2017, algorithm 1 (D-PSGD): x_i <- sum_j W_ij x_j - step(g_i),
where g_i is the gradient at x_i, so that models travel while gradients are computed.
"""

import torch

from fedspeech.config.data_parallel import ParallelSettings
from fedspeech.training.parallel import mixing
from fedspeech.training.parallel.group import Group, Message, all_arrived
from fedspeech.training.parallel.loop import ParallelLoop
from fedspeech.training.parallel.method import Method, flat
from fedspeech.training.parallel.share import Part
from fedspeech.training.parallel.watch import sampled


class Ring(Method):
    """A step for all at the same time; models differ."""

    def __init__(self, loop: ParallelLoop, group: Group, settings: ParallelSettings) -> None:
        super().__init__(loop, group, settings)
        self._model = flat(loop.model)
        self._neighbours = Neighbours(group, self._model)

    def begin(self, part: Part) -> None:
        """Models go to both sides."""
        self._neighbours.begin(self._model)

    def exchange(self, part: Part) -> None:
        """Average, then step."""
        self._neighbours.mix(self._model, out=self._model)
        self.loop.step()


class Neighbours:
    """The learner's row of the ring's mixing matrix, and what comes from where it is not zero."""

    def __init__(self, group: Group, like: torch.Tensor) -> None:
        row = mixing.ring(group.size)[group.rank]
        self._group, self._own = group, float(row[group.rank])
        others = (rank for rank in range(group.size) if rank != group.rank and row[rank])
        self._buffers = {j: (float(row[j]), torch.empty_like(like, device="cpu")) for j in others}
        self._messages: list[Message] = []

    def begin(self, model: torch.Tensor) -> None:
        """Send a model (parameters,), which stays as it is until `mix`."""
        group = self._group
        self._messages = [group.receive(into, j) for j, (_, into) in self._buffers.items()]
        self._messages += [group.send(model, j) for j in self._buffers]

    def mix(self, model: torch.Tensor, out: torch.Tensor) -> None:
        """The weighted average of the model and what came, when all of it has come."""
        self._group.check()
        with self._group.talks():
            all_arrived(self._messages)
        own = sampled(model)
        for _, came in self._buffers.values():
            self._group.watch.met(own, sampled(came))
        torch.mul(model, self._own, out=out)
        for weight, came in self._buffers.values():
            out.add_(came.to(out.device), alpha=weight)
