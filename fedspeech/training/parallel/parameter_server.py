"""Asynchronous SGD with a parameter server: gradients go there, models come back.

Dean et al. 2012 (Downpour SGD), with a push and a pull in each step. The server takes the steps, in
the order in which gradients come: it is not repeatable. `server` is its side.
"""

from collections.abc import Iterator, Sequence

import torch

from fedspeech.config.data_parallel import ParallelSettings
from fedspeech.training.parallel.group import Group
from fedspeech.training.parallel.loop import ParallelLoop
from fedspeech.training.parallel.method import FirstCome, flat
from fedspeech.training.parallel.server import BYE, DONE, PULL, Server
from fedspeech.training.parallel.share import Part


class ParameterServer(FirstCome):
    """The last rank is the server, all others are learners."""

    servers = 1

    def __init__(self, loop: ParallelLoop, group: Group, settings: ParallelSettings) -> None:
        super().__init__(loop, group, settings)
        self._model = flat(loop.model)
        self._server = group.size - 1
        self._came = torch.empty_like(self._model, device="cpu")

    @classmethod
    def able(cls, living: Sequence[int], settings: ParallelSettings) -> list[int]:
        """Nobody goes on without the server, and the server not without a learner."""
        return list(living) if settings.learners in living and len(living) > 1 else []

    @property
    def serves(self) -> bool:
        """Whether this is the server."""
        return self.group.rank == self._server

    def parts(self, first: int) -> Iterator[int]:
        """A learner's parts; on the server those that learners have pushed the gradient of."""
        self._first = first
        if self.serves:
            yield from Server(self.loop, self.group, self._model, self.settings.staleness).pushed()
        else:
            self._say(PULL)
            self._pull()
            yield from super().parts(first)

    def exchange(self, part: Part) -> None:
        """Push the gradient, pull the model."""
        self.group.check()
        gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad for p in self.loop.model.parameters()
        ]
        pushed = torch.nn.utils.parameters_to_vector(gradients)
        self._say(part.number)
        with self.group.talks():
            self.group.send(pushed, self._server).arrived()
        self.group.watch.stale(self._pull())

    def finish(self) -> None:
        """All leave with the last model."""
        if not self.serves:
            self._say(DONE)
            self.group.wait_for_all("pushed", self._server)
            self._say(PULL)
            self._pull()
            self._say(BYE)
        super().finish()

    def _say(self, number: int) -> None:
        header = torch.tensor([self.loop.rate, float(number)], dtype=torch.float64)
        with self.group.talks():
            self.group.send(header, self._server).arrived()

    def _pull(self) -> int:
        """Take the server's model; how stale was what was pushed."""
        stale = torch.empty(1, dtype=torch.float64)
        with self.group.talks():
            self.group.receive(stale, self._server).arrived()
            self.group.receive(self._came, self._server).arrived()
        self._model.copy_(self._came)
        return int(stale)
