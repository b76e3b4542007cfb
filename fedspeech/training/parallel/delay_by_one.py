"""AD-PSGD in its third variant: gradients are of the model one step before.

Cui, Zhang, Kayi, Liu, Finkler, Kingsbury, Saon, Kung 2021 (arXiv 2110.11199): with W_k the models
of all learners after k steps and T the mixing matrix, W_{k+1} = W_k T - step(g(W_{k-1})). So
averaging goes on while gradients are computed, whichever takes longer; the mean of the models goes
where the mean of the gradients says, each a step late. T is the ring's here, which is our reading.
Neighbours keep in step with each other, so that a slow one slows all of them.
"""

from typing import Any

import torch

from fedspeech.config.data_parallel import ParallelSettings
from fedspeech.training.parallel.group import Group
from fedspeech.training.parallel.loop import ParallelLoop
from fedspeech.training.parallel.method import Method, flat
from fedspeech.training.parallel.ring import Neighbours
from fedspeech.training.parallel.share import Part


class DelayByOne(Method):
    """The model's parameters are W_{k-1} while a gradient is computed; W_k is beside them."""

    def __init__(self, loop: ParallelLoop, group: Group, settings: ParallelSettings) -> None:
        super().__init__(loop, group, settings)
        self._before = flat(loop.model)
        self._latest = self._before.clone()
        self._neighbours = Neighbours(group, self._before)
        self._steps = 0

    def begin(self, part: Part) -> None:
        """The latest models go to both sides."""
        self._neighbours.begin(self._latest)

    def exchange(self, part: Part) -> None:
        """Average the latest models, step from there, and compute at what was the latest."""
        # Nobody needs the model before any more: its place takes the next one.
        self._neighbours.mix(self._latest, out=self._before)
        self.loop.step()
        self._before, self._latest = self._latest, self._before
        self._point_to(self._before)
        self.group.watch.stale(min(self._steps, 1))
        self._steps += 1

    def close(self) -> None:
        """The model is the latest one."""
        self._point_to(self._latest)

    def state(self) -> dict[str, Any]:
        """The latest model; the one before is the checkpoint's own."""
        return {"latest": self._latest.clone()}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on a step behind it, where the model is; it is not where only the group is another."""
        if state:
            self._latest.copy_(state["latest"])
            self._steps = int(not torch.equal(self._latest, self._before))

    def _point_to(self, model: torch.Tensor) -> None:
        torch.nn.utils.vector_to_parameters(model, self.loop.model.parameters())
