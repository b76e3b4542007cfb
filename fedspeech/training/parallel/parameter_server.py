"""Asynchronous SGD with a parameter server: gradients go there, models come back.

Dean et al. 2012 (Downpour SGD), with a push and a pull in each step. The server takes the steps, in
the order in which gradients come: it is not repeatable. `server` is its side.
"""

from collections.abc import Iterator, Sequence

import torch

from fedspeech.config.data_parallel import ParallelSettings
from fedspeech.training.parallel.group import Group, Message, all_arrived
from fedspeech.training.parallel.loop import ParallelLoop
from fedspeech.training.parallel.method import FirstCome, flat
from fedspeech.training.parallel.server import BYE, DONE, PULL, SAID, SENT, Server
from fedspeech.training.parallel.share import Part
from fedspeech.training.parallel.watch import sampled


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
        """A learner's parts; on the server how far all learners have pushed gradients."""
        self._first = first
        if self.serves:
            last = self.loop.share.parts - 1
            server = Server(self.loop, self.group, self._model, self.settings.staleness)
            for number in server.left(first):
                yield min(number, last)
        else:
            self._pull(PULL)
            yield from super().parts(first)

    def exchange(self, part: Part) -> None:
        """Push the gradient, pull the model."""
        self.group.check()
        gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad for p in self.loop.model.parameters()
        ]
        before = sampled(self._model)
        pushed = torch.nn.utils.parameters_to_vector(gradients)
        self.group.watch.stale(self._pull(part.number, pushed))
        self.group.watch.met(before, sampled(self._model))

    def finish(self) -> None:
        """All leave with the last model."""
        if not self.serves:
            self._say(DONE)
            self.group.wait_for_all("pushed", self._server)
            self._pull(PULL)
            self._say(BYE)
        super().finish()

    def _say(self, number: int) -> None:
        with self.group.talks():
            self._header(number).arrived()

    def _pull(self, number: int, *pushed: torch.Tensor) -> int:
        """Take the server's model, with a part's number after its gradient was pushed; how stale
        that was. What is sent and what comes back is waited for at once.
        """
        stale = torch.empty(1, dtype=torch.float64)
        with self.group.talks():
            messages = [
                self._header(number),
                *(self.group.send(gradient, self._server, SENT) for gradient in pushed),
                self.group.receive(stale, self._server, SAID),
                self.group.receive(self._came, self._server, SENT),
            ]
            all_arrived(messages)
        self._model.copy_(self._came)
        return int(stale)

    def _header(self, number: int) -> Message:
        header = torch.tensor([self.loop.rate, float(number)], dtype=torch.float64)
        return self.group.send(header, self._server, SAID)
