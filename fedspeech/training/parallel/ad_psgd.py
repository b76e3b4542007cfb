"""Asynchronous decentralized SGD: two learners at a time take the mean of their models.

Lian, Zhang, Zhang, Liu 2018 (AD-PSGD, algorithm 1): nobody waits for all others. So that no two
wait for each other, learners of even rank are active and the others passive. An active one sends
its model while it computes a gradient, and gets the partner's; a passive one answers at any time,
in a thread of its own, also while it computes. Both then have the mean, and each takes the step of
its own gradient from there. On a ring of odd length the two active ends do not meet.

The partner is a neighbour on the ring, by turns, or any passive learner. What is trained depends on
who comes when: it is not repeatable.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedspeech import seeding
from fedspeech.config.data_parallel import ParallelSettings
from fedspeech.training.parallel.group import Group, Message, all_arrived
from fedspeech.training.parallel.loop import ParallelLoop
from fedspeech.training.parallel.method import FirstCome, flat
from fedspeech.training.parallel.share import Part
from fedspeech.training.parallel.watch import sampled


class ADPSGD(FirstCome):
    """Learners have a place on the ring, which has `size` of them."""

    def __init__(self, loop: ParallelLoop, group: Group, settings: ParallelSettings) -> None:
        super().__init__(loop, group, settings)
        self.model = flat(loop.model)
        self._came = torch.empty_like(self.model, device="cpu")
        self._messages: list[Message] = []
        self._turn = 0
        self._passive: Passive | None = None
        if self.place is not None and self.place % 2:
            actives = [place for place in range(0, self.size, 2) if self._meets(place, self.place)]
            self._passive = Passive(group, self.model, [self.rank_of(each) for each in actives])

    @property
    def size(self) -> int:
        """How many places there are."""
        return self.group.size

    @property
    def place(self) -> int | None:
        """This learner's; None where it has none."""
        return self.group.rank

    def rank_of(self, place: int) -> int:
        """Who is there."""
        return place

    def begin(self, part: Part) -> None:
        """An active learner sends its model; the gradient is computed meanwhile."""
        if self._passive is None and (partner := self._partner(part)) is not None:
            rank = self.rank_of(partner)
            self._messages = [
                self.group.receive(self._came, rank),
                self.group.send(self.model, rank),
            ]

    def exchange(self, part: Part) -> None:
        """Step from the mean."""
        with self.mixed():
            self.loop.step()

    @contextmanager
    def mixed(self) -> Iterator[None]:
        """In the block the model is what averaging has made of it, and nobody else changes it."""
        self.group.check()
        if self._passive is not None:
            with self._passive.held(self.model) as mixings:
                self.mixed_with(mixings)
                yield
            return
        with self.group.talks():
            all_arrived(self._messages)
        if self._messages:
            self.group.watch.met(sampled(self.model), sampled(self._came))
            self.model.lerp_(self._came.to(self.model.device), 0.5)
            self.mixed_with(1)
        self._messages = []
        yield

    def mixed_with(self, others: int) -> None:
        """So many have changed the model since the gradient of it was begun."""
        self.group.watch.stale(others)

    def finish(self) -> None:
        """All parts are done, and averaged."""
        super().finish()
        self._settle()

    def close(self) -> None:
        """The model is nobody else's any more."""
        self._settle()

    def _settle(self) -> None:
        """A passive learner takes what the last ones made of its model."""
        if self._passive is not None:
            self._passive.close(self.model)

    def _partner(self, part: Part) -> int | None:
        """The place of the passive learner that this active one averages with now."""
        if self.place is None:
            return None
        others = [place for place in range(1, self.size, 2) if self._meets(self.place, place)]
        self._turn += 1
        if not others:
            return None
        if self.settings.partner == "random":
            draw = seeding.generator(self.loop.share.seed, part.number, "", "ad-psgd, partner")
            return others[int(draw.integers(len(others)))]
        return others[self._turn % len(others)]

    def _meets(self, active: int, passive: int) -> bool:
        """Whether two ever average; on a ring neighbours do."""
        beside = (active - passive) % self.size in (1, self.size - 1)
        return beside or self.settings.partner == "random"


class Passive:
    """A model that others take the mean with while it is being learned."""

    def __init__(self, group: Group, model: torch.Tensor, actives: list[int]) -> None:
        self._group, self._shared = group, model.detach().cpu().clone()
        self._lock = threading.Lock()
        self._mixings = 0
        self._closing = False
        for rank in actives:
            threading.Thread(target=self._answer, args=(rank,), daemon=True).start()

    @contextmanager
    def held(self, model: torch.Tensor) -> Iterator[int]:
        """The shared model goes into `model` and, changed, back; how often others changed it."""
        with self._group.watch.waits():
            self._lock.acquire()
        try:
            model.copy_(self._shared)
            mixings, self._mixings = self._mixings, 0
            yield mixings
            self._shared.copy_(model)
        finally:
            self._lock.release()

    def close(self, model: torch.Tensor) -> None:
        """Nobody else counts any more."""
        with self._lock:
            self._closing = True
            model.copy_(self._shared)

    def _answer(self, rank: int) -> None:
        """Average with one active learner as often as it asks, until the group is gone."""
        try:
            spare = torch.empty_like(self._shared)
            while True:
                came = self._group.receive(spare, rank).arrived()
                with self._lock:
                    if self._closing:
                        return
                    # The mean takes the place of what came; what was shared goes back as it is.
                    mine, self._shared = self._shared, came.lerp_(self._shared, 0.5)
                    self._mixings += 1
                self._group.send(mine, rank).arrived()
                spare = mine
        except Exception as error:
            # Whatever it is, this learner has to know, wherever it looks.
            if not self._closing:
                self._group.wrong = error
