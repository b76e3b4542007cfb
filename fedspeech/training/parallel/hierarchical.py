"""Allreduce inside a node, AD-PSGD between nodes.

Zhang, Cui, Finkler, Saon, Kayi, Buyuktosunoglu, Kingsbury, Kung, Picheny 2019 (arXiv 1907.05701,
H-ADPSGD): the learners of a node are one learner with a large batch, and its first one averages
with those of other nodes. Not repeatable, as AD-PSGD.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from fedspeech.accelerator import place as device
from fedspeech.config.data_parallel import ParallelSettings
from fedspeech.training.parallel.ad_psgd import ADPSGD
from fedspeech.training.parallel.allreduce import Joined
from fedspeech.training.parallel.group import Group
from fedspeech.training.parallel.loop import ParallelLoop
from fedspeech.training.parallel.share import Part

NONE = -1


class Hierarchical(ADPSGD):
    """Nodes are the places on the ring; the first learner of a node speaks for it."""

    def __init__(self, loop: ParallelLoop, group: Group, settings: ParallelSettings) -> None:
        self._within, self._size = group.rank % settings.node_size, settings.node_size
        self._stale = 0
        super().__init__(loop, group, settings)
        self._node: dist.ProcessGroup | None = None
        for first in range(0, group.size, self._size):
            if self._size > 1:
                self._node = group.part(range(first, first + self._size)) or self._node
        self._joined = Joined(loop, group, learners=self._node) if self._node is not None else None

    @classmethod
    def able(cls, living: Sequence[int], settings: ParallelSettings) -> list[int]:
        """Whole nodes."""
        size = settings.node_size
        nodes = [range(first, first + size) for first in range(0, settings.learners, size)]
        return [number for node in nodes if set(node) <= set(living) for number in node]

    @classmethod
    def keepers(cls, learner: int, settings: ParallelSettings) -> Sequence[int]:
        """All of the node, who begin alike: each with that of the first who has one."""
        first = learner - learner % settings.node_size
        return range(first, first + settings.node_size)

    @property
    def size(self) -> int:
        """Nodes."""
        return self.group.size // self._size

    @property
    def place(self) -> int | None:
        """The node's, for its first learner."""
        return None if self._within else self.group.rank // self._size

    def rank_of(self, place: int) -> int:
        """The node's first learner."""
        return place * self._size

    def parts(self, first: int) -> Iterator[int]:
        """As many for the node as it has learners, of one joined batch; the first one claims.

        With the number it tells how stale the gradient before was, which was that of all of them.
        """
        self._first = first
        while True:
            claimed = None if self.place is None else self.claim(self._size)
            known = [NONE if claimed is None else claimed, self._stale]
            told = torch.tensor(known, device=device())
            self._tell(told)
            number, stale = told.tolist()
            if self.place is None:
                self.group.watch.stale(stale)
            if number == NONE:
                return
            yield number + self._within

    def weight(self, part: Part) -> float:
        """Of a mean over the node's parts of the joined batch."""
        share, first = self.loop.share, part.number - self._within
        together = sum(len(share.part(first + i).chosen) for i in range(self._size))
        return self._size / together

    def exchange(self, part: Part) -> None:
        """Gradients are the node's already; the mean goes to its learners, and all step."""
        if self._node is not None:
            # Who is slow rests before all meet, and not while they hold the model that other nodes
            # ask for.
            self.group.sum(torch.zeros(1, device=device()), self._node)
        with self.mixed():
            self._tell(self.model)
            self.loop.step()

    def mixed_with(self, others: int) -> None:
        """The node's model has changed so often."""
        super().mixed_with(others)
        self._stale = others

    def finish(self) -> None:
        """All parts are done, and averaged: what came of the last averagings is the node's."""
        super().finish()
        self._tell(self.model)

    def close(self) -> None:
        """The model is one of its own again."""
        super().close()
        if self._joined is not None:
            self._joined.part_ways()

    def _tell(self, tensor: torch.Tensor) -> None:
        """What the first learner of the node has, for the others."""
        if self._node is None:
            return
        if self.place is not None:
            self.group.watch.sent(tensor.numel() * tensor.element_size() * (self._size - 1))
        with self.group.talks():
            dist.broadcast(tensor, self.group.rank - self._within, group=self._node)
