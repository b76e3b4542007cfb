"""The parameter server: it keeps the model and the optimizer, and takes every learner's steps.

The staleness of a gradient is the number of updates between the pull of its model and its push.
Where it is bounded, a push waits as long as its update would leave another learner's too stale,
in whatever order the others push.
"""

import queue
import threading
from collections.abc import Iterator, Mapping

import torch

from fedspeech.errors import DivergedError
from fedspeech.training.parallel.group import Group, Lost, all_arrived
from fedspeech.training.parallel.loop import ParallelLoop

PULL, DONE, BYE = -1, -2, -3
"""Said instead of the number of a part: `DONE` that no other push comes."""
SAID, SENT = 0, 1
"""Tags of a few numbers, and of a gradient or a model: both are on their way at a time."""
LOOK_SECONDS = 0.1


class Server:
    """Answers every learner in a thread of its own; the model is changed by one at a time."""

    def __init__(
        self, loop: ParallelLoop, group: Group, model: torch.Tensor, bound: int | None
    ) -> None:
        self._loop, self._group, self._model, self._bound = loop, group, model, bound
        self._turn = threading.Condition()
        self._version = 0
        self._pulled: dict[int, int] = {}
        self._news: queue.Queue[int | Exception] = queue.Queue()
        self._diverged: DivergedError | None = None
        self._closing = False
        self._taken: set[int] = set()

    def left(self, first: int) -> Iterator[int]:
        """After each push the first part whose step was not taken, from this one on, until all
        learners have said goodbye: an epoch is over where the slowest has pushed its last part.

        The model is not changed while whoever asks has a number. It may have taken steps of later
        parts; who goes on from it learns those again, and none is left out. Raises Lost where a
        learner is gone, DivergedError where a step led to what is no number.
        """
        learners = self._group.size - 1
        for rank in range(learners):
            threading.Thread(target=self._answer, args=(rank,), daemon=True).start()
        try:
            while learners:
                self._group.check()
                news = self._next()
                if isinstance(news, Exception):
                    raise news
                learners -= news == BYE
                if news >= 0:
                    with self._turn:
                        # Parts before it may be news still, but the model is not theirs any more.
                        if self._diverged is not None:
                            raise self._diverged
                        while first in self._taken:
                            self._taken.remove(first)
                            first += 1
                        yield first
        finally:
            with self._turn:
                self._closing = True
                self._turn.notify_all()

    def _next(self) -> int | Exception:
        try:
            return self._news.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            return PULL

    def _answer(self, rank: int) -> None:
        """Do what a learner says until it says goodbye."""
        number = PULL
        try:
            header = torch.empty(2, dtype=torch.float64)
            gradient = torch.empty_like(self._model, device="cpu")
            while number != BYE:
                rate, said = self._group.receive(header, rank, SAID).arrived().tolist()
                number, stale = int(said), 0
                if number >= 0:
                    self._group.receive(gradient, rank, SENT).arrived()
                    stale = self._update(rank, rate, gradient, number)
                if number in (DONE, BYE):
                    self._forget(rank)
                else:
                    self._give(rank, stale)
                self._news.put(number)
        except Exception as error:
            # Whatever it is, whoever asks for news has to know: else all would wait for ever.
            self._news.put(error)

    def _update(self, rank: int, rate: float, gradient: torch.Tensor, number: int) -> int:
        """Take the step of a part's gradient when its turn has come; how stale it was."""
        with self._turn:
            self._turn.wait_for(lambda: self._closing or self._may(rank))
            self._check_open()
            stale = self._version - self._pulled[rank]
            self._loop.begins(number)
            try:
                self._step(rate, gradient.to(self._model.device))
            except DivergedError as error:
                # Nobody gets this model, nor is anything else told of before it.
                self._closing, self._diverged = True, error
                self._news.put(error)
                self._check_open()
            self._version += 1
            self._taken.add(number)
            self._pulled[rank] = self._version
            self._turn.notify_all()
            return stale

    def _check_open(self) -> None:
        if self._closing:
            raise Lost("the server is closing")

    def _may(self, rank: int) -> bool:
        others = {other: at for other, at in self._pulled.items() if other != rank}
        return self._bound is None or leaves_time(self._version + 1, others, self._bound)

    def _step(self, rate: float, gradient: torch.Tensor) -> None:
        parameters = list(self._loop.model.parameters())
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, torch.split(gradient, sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        for group in self._loop.optimizer.param_groups:
            group["lr"] = rate
        self._loop.step()

    def _give(self, rank: int, stale: int) -> None:
        with self._turn:
            self._check_open()
            self._pulled[rank] = self._version
            model = self._model.clone()
        told = torch.tensor([stale], dtype=torch.float64)
        all_arrived([self._group.send(told, rank, SAID), self._group.send(model, rank, SENT)])

    def _forget(self, rank: int) -> None:
        """A learner that pushes no more leaves time to all others."""
        with self._turn:
            self._pulled.pop(rank, None)
            self._turn.notify_all()


def leaves_time(version: int, pulled: Mapping[int, int], bound: int) -> bool:
    """Whether all who compute can still push within the bound, if they push one after the other.

    `version` counts the updates so far, `pulled` says at which each learner took its model.
    """
    earliest = sorted(pulled.values())
    return all(version + turn - at <= bound for turn, at in enumerate(earliest))
