"""One generation of a group: the learners learn until all is done, one dies, or one joins."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from fedspeech.errors import FedSpeechError
from fedspeech.training.parallel.crew import DIED, Crew, gotten
from fedspeech.training.parallel.group import NEWS_SECONDS, Seat
from fedspeech.training.parallel.learner import CUT_SECONDS, Ended, Order, Report

log = logging.getLogger("fedspeech")

STOP_SECONDS = 300.0
"""A learner that has not come back so long after it was told to is taken for dead; but not while it
may be forming the group or a part of it, where it notices nothing."""
ERROR_SECONDS = 2 * CUT_SECONDS
"""The same where what one of them says ends the run."""


@dataclass
class Outcome:
    """How a generation ended: learners that died, and where the others are."""

    dead: dict[int, str] = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)
    called: bool = False
    """Whether the others were told to come back because one is ready to join."""

    @property
    def lost(self) -> str | None:
        """Why a group broke that had everybody; None where one died or another one is to join."""
        if self.dead or self.called:
            return None
        return next((each.lost for each in self.ended if each.lost is not None), None)

    @property
    def done(self) -> bool:
        """Everything is learned."""
        return not self.dead and all(each.lost is None for each in self.ended)

    @property
    def reached(self) -> int:
        """The first part that is left."""
        return max((each.reached for each in self.ended), default=0)


class Generation:
    """Members learn from a part on, until they come back."""

    def __init__(
        self,
        crew: Crew,
        name: str,
        members: Sequence[int],
        tell: Callable[[Report], None],
        seconds: float,
    ) -> None:
        """The group has so many seconds to form; `tell` is told what learners report."""
        self._crew, self._name, self._members, self._tell = crew, name, tuple(members), tell
        self._seconds = seconds
        self._streams: dict[Any, int] = {}
        self._error: FedSpeechError | None = None
        self._outcome = Outcome()

    def run(
        self,
        first: int,
        epoch: int | None,
        coming: Mapping[int, ray.ObjectRef],
        joins: Callable[[Sequence[int]], bool],
    ) -> Outcome:
        """Raises the FedSpeechError of a learner, when all have come back.

        As soon as those of the learners who are `coming` that are ready can join, the others come
        back.
        """
        for number in self._members:
            seat = Seat(number, self._members, self._name, self._seconds, self._crew.own_gpus)
            order = Order(seat, self._crew.address, first, epoch)
            actor = self._crew.actor(number)
            stream = actor.learn.options(num_returns="streaming").remote(order)
            self._streams[stream] = number
        waiting, here = {waited: number for number, waited in coming.items()}, list[int]()
        while self._streams:
            ready, _ = ray.wait([*self._streams, *waiting], timeout=self._patience)
            if not ready:
                self._give_up()
            for each in ready:
                if each in self._streams:
                    self._take(each)
                else:
                    here.append(waiting.pop(each))
                    if joins(here):
                        self._outcome.called = True
                        self._stop()
        if self._error is not None:
            raise self._error
        return self._outcome

    @property
    def _patience(self) -> float | None:
        if self._error is not None:
            return ERROR_SECONDS
        if self._outcome.dead or self._outcome.ended:
            return max(STOP_SECONDS, 2 * self._seconds + NEWS_SECONDS)
        return None

    def _take(self, stream: Any) -> None:
        number = self._streams[stream]
        try:
            item = gotten(next(stream))
        except StopIteration:
            del self._streams[stream]
        except FedSpeechError as error:
            self._error = self._error or error
            self._stop()
        except DIED as error:
            self._lose(stream, str(error).splitlines()[0])
        else:
            if isinstance(item, Report):
                self._tell(item)
            else:
                self._outcome.ended.append(item)
                if item.lost is not None:
                    log.info("learner %d is back: %s", number, item.lost)
                    self._stop()

    def _lose(self, stream: Any, why: str) -> None:
        number = self._streams.pop(stream)
        self._outcome.dead[number] = why
        self._crew.bury(number)
        self._stop()

    def _give_up(self) -> None:
        for stream in list(self._streams):
            self._lose(stream, f"did not come back in {self._patience:g} s")

    def _stop(self) -> None:
        for number in self._streams.values():
            self._crew.actor(number).stop.remote(self._name)
