"""Clients on Ray actors: simulated GPU workers, each with its share of the machine.

What many messages carry (G, a candidate's difference) is put into Ray's object store once. Which
worker answers a message, and when, changes nothing in the answer.
"""

import collections
import logging
import math
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedspeech import protocol
from fedspeech.cluster import joining
from fedspeech.cluster.warned import Told
from fedspeech.config.engine import EngineSettings
from fedspeech.errors import FedSpeechError, RunError
from fedspeech.simulation.grid import Nodes, SimulatedGrid
from fedspeech.simulation.pace import Pace
from fedspeech.simulation.worker import QUICK_SECONDS, Answers, Arrays, Worker

LOG = logging.getLogger(__name__)
LOOK_SECONDS = 0.02
"""How often to look for replies while messages are still being made."""
MOST_FAILED_STARTS = 3
"""Workers that die one after the other before the first of them is there: none will be."""
START_SECONDS = 600.0
"""A worker that is not there after so long never will be."""


@dataclass
class Task:
    """A message on its way, how often its worker died, and how often its client raised."""

    message: Message
    arrays: Arrays
    alone: bool = False
    """Whether it travels by itself: it was in a batch whose worker died."""
    deaths: int = 0
    errors: int = 0

    @property
    def kind(self) -> str:
        """The message's type."""
        return str(self.message.metadata.message_type)


@dataclass
class Batch:
    """Messages of one type that a worker was handed together; none while it starts.

    A worker fine-tunes a cohort before its messages are handed out.
    """

    worker: Any
    numbers: list[str]
    deadline: float
    cohort: bool = False


class RayGrid(SimulatedGrid):
    """Hands messages to the workers in their order: quick ones many at a time, slow ones singly.

    Where Ray runs in this process already, the workers join it; else it is started, and ended by
    `close`. Raises RunError where Ray has fewer GPUs than the workers want.

    When a worker dies, the messages of its batch go out again one by one, and only one that was
    alone is charged with the death: it cannot fail its neighbours. A cohort is tried again as it
    was; where its workers die all the same, the run ends. A worker that hangs is killed. A client
    that raises is asked again when the others have been.
    """

    def __init__(self, app: str, nodes: Nodes, engine: EngineSettings) -> None:
        super().__init__(nodes, engine.cohort_size)
        self.at_once = engine.workers * engine.cohort_size
        self._app, self._engine = app, engine
        self._pace = Pace()
        self._shared: dict[int, tuple[weakref.ref[ArrayRecord], ray.ObjectRef]] = {}
        self._tasks: dict[str, Task] = {}
        self._queue: collections.deque[str] = collections.deque()
        self._running: dict[ray.ObjectRef, Batch] = {}
        self._idle: list[Any] = []
        self._ended: dict[str, Message] = {}
        self._failed_starts = 0
        self._warned = Told()
        self._looked = 0.0
        self._started_ray = joining.connect(engine)
        for _ in range(engine.workers):
            self._start_worker()

    def _start_worker(self) -> None:
        engine = self._engine
        options = {"num_cpus": engine.cpus_per_worker, "num_gpus": engine.gpus_per_worker}
        actor = ray.remote(max_restarts=0, max_task_retries=0)(Worker)
        self._hand(actor.options(**options).remote(self._app, engine.cpus_per_worker), [])

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages to answer; their ids, in the same order."""
        numbers = []
        for message in messages:
            number = self._number(message)
            self._tasks[number] = Task(*self._take_out_arrays(message))
            self._enqueue(number)
            numbers.append(number)
        self._hand_out(more_to_come=True)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Replies that have come; waits until there is at least one."""
        wanted = list(message_ids)
        self._hand_out()
        while wanted and self._ended.keys().isdisjoint(wanted):
            self._collect()
        return iter([self._ended.pop(number) for number in wanted if number in self._ended])

    def ready(self) -> bool:
        """Whether there are replies to pull already."""
        if time.monotonic() - self._looked > LOOK_SECONDS and self._running:
            self._collect(seconds=0, more_to_come=True)
            self._looked = time.monotonic()
        return bool(self._ended)

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for worker in [*self._idle, *(batch.worker for batch in self._running.values())]:
            ray.kill(worker)
        joining.leave(self._started_ray)

    def _enqueue(self, number: str) -> None:
        message = self._tasks[number].message
        if self._goes_with_a_cohort(message):
            self._cohorts.add(message.metadata.dst_node_id, number)
        else:
            self._queue.append(number)

    def _take_out_arrays(self, message: Message) -> tuple[Message, Arrays]:
        records = protocol.arrays(message.content)
        if not records:
            return message, {}
        arrays = {name: self._share(record) for name, record in records.items()}
        kept = {name: r for name, r in message.content.items() if name not in arrays}
        return Message(content=RecordDict(kept), metadata=message.metadata), arrays

    def _share(self, record: ArrayRecord) -> ray.ObjectRef:
        """Ray's reference to a set of tensors, the same one for as long as the set lives."""
        key = id(record)
        known = self._shared.get(key)
        if known is None or known[0]() is not record:
            known = weakref.ref(record, partial(self._unshare, key)), ray.put(record)
            self._shared[key] = known
        return known[1]

    def _unshare(self, key: int, gone: "weakref.ref[ArrayRecord]") -> None:
        if self._shared.get(key, (None,))[0] is gone:
            del self._shared[key]

    def _hand_out(self, more_to_come: bool = False) -> None:
        while self._idle and (numbers := self._next_batch(more_to_come)):
            self._hand(self._idle.pop(0), numbers)
        if self._cohort > 1:
            self._hand_out_cohorts(more_to_come)

    def _hand_out_cohorts(self, more_to_come: bool) -> None:
        """Whole cohorts; one that lacks a node only when nothing else could bring its message."""
        while self._idle:
            nothing = not (more_to_come or self._running or self._queue or self._ended)
            if (cohort := self._cohorts.first(whole=not nothing)) is None:
                return
            tasks = {node: self._tasks[number] for node, number in cohort.messages.items()}
            given = [
                (self._contexts[n], (tasks[n].message, tasks[n].arrays) if n in tasks else None)
                for n in cohort.nodes
            ]
            worker = self._idle.pop(0)
            deadline = time.monotonic() + self._engine.message_seconds * len(cohort.nodes)
            batch = Batch(worker, list(cohort.messages.values()), deadline, cohort=True)
            self._running[worker.prepare.remote(given)] = batch

    def _next_batch(self, more_to_come: bool) -> list[str]:
        """The messages at the head of the queue that travel together.

        While more are to come there are none before the batch is full; at the end the workers share
        what is left.
        """
        if not self._queue:
            return []
        first = self._tasks[self._queue[0]]
        size = 1 if first.alone else self._pace.size(first.kind)
        if not more_to_come:
            size = min(size, math.ceil(len(self._queue) / self._engine.workers))
        elif len(self._queue) < size:
            return []
        numbers = [self._queue.popleft()]
        while len(numbers) < size and self._queue:
            task = self._tasks[self._queue[0]]
            if task.alone or task.kind != first.kind:
                break
            numbers.append(self._queue.popleft())
        return numbers

    def _hand(self, worker: Any, numbers: list[str]) -> None:
        tasks = [self._tasks[number] for number in numbers]
        batch = [
            (task.message, task.arrays, self._contexts[task.message.metadata.dst_node_id])
            for task in tasks
        ]
        # A worker breaks its batch off, so that only its last message can take long.
        limit = QUICK_SECONDS + self._engine.message_seconds if numbers else START_SECONDS
        deadline = time.monotonic() + limit
        self._running[worker.answer.remote(batch)] = Batch(worker, numbers, deadline)

    def _collect(self, seconds: float | None = None, more_to_come: bool = False) -> None:
        """Take in what one worker answered; wait so long for it, or until there is something."""
        if seconds is None:
            first = min(batch.deadline for batch in self._running.values())
            seconds = max(0.0, first - time.monotonic())
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=seconds)
        for reference in ready:
            batch = self._running.pop(reference)
            try:
                self._take(batch, ray.get(reference))
            except ray.exceptions.RayError as error:
                if isinstance(error, ray.exceptions.RayTaskError) and (
                    batch.cohort or isinstance(error.cause, FedSpeechError)
                ):
                    raise error.cause from None  # another worker would raise it too
                self._bury(batch, error)
        self._kill_who_hangs()
        self._hand_out(more_to_come)

    def _kill_who_hangs(self) -> None:
        now = time.monotonic()
        late = [reference for reference, batch in self._running.items() if batch.deadline < now]
        # This process may have been busy: what has come by now came in time.
        come = ray.wait(late, num_returns=len(late), timeout=0)[0] if late else []
        for reference in set(late) - set(come):
            seconds = self._engine.message_seconds
            self._bury(self._running.pop(reference), TimeoutError(f"no answer in {seconds:g} s"))

    def _take(self, batch: Batch, answers: Answers) -> None:
        self._failed_starts = 0
        self._idle.append(batch.worker)
        self._warned.tell(answers.warned)
        if batch.cohort:
            self._queue.extend(batch.numbers)
        if batch.cohort or not batch.numbers:
            return
        done = len(answers.replies)
        kind = self._tasks[batch.numbers[0]].kind
        self._pace.learn(kind, len(batch.numbers), done, answers.seconds)
        for number, (reply, state) in zip(batch.numbers, answers.replies, strict=False):
            task = self._tasks[number]
            task.errors += reply.has_error()
            if reply.has_error() and task.errors <= self._engine.retries:
                self._ask_again(reply)
                self._queue.append(number)
                continue
            if not reply.has_error():
                self._contexts[task.message.metadata.dst_node_id].state = state
            self._end(number, reply)
        self._queue.extendleft(reversed(batch.numbers[done:]))

    def _bury(self, batch: Batch, error: Exception) -> None:
        """A worker died: replace it, and try its messages again unless that was tried enough.

        Raises RunError where it could not even start: no other one could. Also where a cohort's
        workers died too often: its speakers could be fine-tuned one by one, to other numbers.
        """
        self._check_that_it_had_started(batch, error)
        self.deaths += 1
        hung = f" ({error})" if isinstance(error, TimeoutError) else ""
        why = hung.strip(" ()") or type(error).__name__
        LOG.warning("a worker died (%s); its messages go to a new one", why)
        ray.kill(batch.worker)
        self._start_worker()
        for number in reversed(batch.numbers):
            self._charge(number, batch, hung)

    def _charge(self, number: str, batch: Batch, hung: str) -> None:
        """A message's worker died: try it again, by itself or in its cohort, or give it up."""
        task = self._tasks[number]
        task.deaths += batch.cohort or len(batch.numbers) == 1
        reason = f"its worker died {task.deaths} times{hung}"
        if task.deaths > self._engine.retries:
            if batch.cohort and len(batch.numbers) > 1:
                raise RunError(_given_up(len(batch.numbers), reason))
            dead = Error(ErrorCode.CLIENT_APP_CRASHED, reason)
            self._end(number, Message(dead, reply_to=task.message))
        elif batch.cohort:
            self._enqueue(number)
        else:
            task.alone = True
            self._queue.appendleft(number)

    def _check_that_it_had_started(self, batch: Batch, error: Exception) -> None:
        if batch.numbers:
            return
        self._failed_starts += 1
        if isinstance(error, TimeoutError):
            spare = ray.available_resources()
            raise RunError(
                f"a worker is not there after {START_SECONDS:g} s; Ray has "
                f"{spare.get('CPU', 0):g} processors and {spare.get('GPU', 0):g} GPUs to spare"
            )
        if getattr(error, "actor_init_failed", False) or self._failed_starts > MOST_FAILED_STARTS:
            raise RunError(f"a worker cannot start: {str(error).strip().splitlines()[-1]}")

    def _end(self, number: str, reply: Message) -> None:
        self._ended[number] = reply
        del self._tasks[number]


def _given_up(count: int, reason: str) -> str:
    """A processor's memory that runs out looks like any other death: the system kills."""
    return (
        f"a cohort of {count} speakers: {reason}. If its memory ran out, engine.cohort = "
        f"{count // 2} takes half of it; with 1, nobody but the speaker at fault is lost. Either "
        "gives other roundings, and so is another run (--out)"
    )
