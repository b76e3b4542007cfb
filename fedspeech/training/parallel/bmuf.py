"""Blocks of steps of one's own, then all models are averaged and filtered by block momentum.

Chen & Huo 2016, Scalable Training of Deep Learning Machines by Incremental Block Training with
Intra-Block Parallel Optimization and Blockwise Model-Update Filtering: with G the mean of the
models at the end of block t, D(t) = momentum * D(t-1) + G - W(t-1) and W(t) = W(t-1) + D(t), from
where all go on (classical block momentum, block learning rate 1).

PyTorch's PeriodicModelAverager would average after the first step of each block, has no end for a
shorter one, leaves out what has no gradient here though it may have one elsewhere, and does not say
when it averaged, which is when bytes count and the mean is filtered.
"""

from typing import Any

import torch

from fedspeech.config.data_parallel import ParallelSettings
from fedspeech.training.parallel.group import Group
from fedspeech.training.parallel.loop import ParallelLoop
from fedspeech.training.parallel.method import Method, flat
from fedspeech.training.parallel.share import Part
from fedspeech.training.parallel.watch import sampled


class BMUF(Method):
    """All wait for all, once in a block."""

    restarts = True

    def __init__(self, loop: ParallelLoop, group: Group, settings: ParallelSettings) -> None:
        super().__init__(loop, group, settings)
        self._model = flat(loop.model)
        self._global = self._model.clone()
        self._change = torch.zeros_like(self._model)
        self._steps = 0

    def exchange(self, part: Part) -> None:
        """A step, and at the end of a block the filtered mean."""
        self.group.check()
        self.loop.step()
        self._steps += 1
        if self._steps % self.settings.block == 0:
            self._end_block()

    def finish(self) -> None:
        """The last block may be shorter; it ends once, also where this is gone on with."""
        if missing := -self._steps % self.settings.block:
            self._end_block()
            self._steps += missing
        super().finish()

    def state(self) -> dict[str, Any]:
        """W, D, and where in its block the learner is."""
        return {
            "global": self._global.clone(),
            "change": self._change.clone(),
            "steps": self._steps,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on in the block."""
        if state:
            self._global.copy_(state["global"])
            self._change.copy_(state["change"])
            self._steps = state["steps"]

    def _end_block(self) -> None:
        own = sampled(self._model)
        self.group.sum(self._model)
        self._model.div_(self.group.size)
        self.group.watch.met(own, sampled(self._model))
        self._change.mul_(self.settings.momentum).add_(self._model).sub_(self._global)
        self._global.add_(self._change)
        self._model.copy_(self._global)
