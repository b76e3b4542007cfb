"""Clients on Ray actors: simulated GPU workers, each with its share of the machine.

What many messages carry (G, a candidate's difference) is put into Ray's object store once. Which
worker answers a message, and when, changes nothing in the answer.
"""

import collections
import logging
import os
import warnings
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import torch
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedspeech.config import EngineSettings
from fedspeech.errors import RunError
from fedspeech.simulation.grid import Nodes, SimulatedGrid, answer, load_app

LOG = logging.getLogger(__name__)
OBJECT_STORE_BYTES = 2**30
"""Ray spills to disk what does not fit."""
RECORDS_HELD = 64
"""Sets of tensors that a worker keeps, so that it reads G once and not for every message."""


class Worker:
    """One process that answers messages for any node, one at a time."""

    def __init__(self, app: str, threads: int) -> None:
        torch.set_num_threads(threads)
        logging.getLogger("flwr").setLevel(logging.WARNING)
        self._app = load_app(app)
        self._records: collections.OrderedDict[str, ArrayRecord] = collections.OrderedDict()

    def answer(
        self, message: Message, arrays: dict[str, ray.ObjectRef], context: Context
    ) -> tuple[Message, RecordDict]:
        """The reply, and what the node keeps for the next message."""
        for name, reference in arrays.items():
            message.content[name] = self._record(reference)
        return answer(self._app, message, context), context.state

    def _record(self, reference: ray.ObjectRef) -> ArrayRecord:
        key = reference.hex()
        if key not in self._records:
            self._records[key] = ray.get(reference)
        self._records.move_to_end(key)
        while len(self._records) > RECORDS_HELD:
            self._records.popitem(last=False)
        return self._records[key]


@dataclass
class Task:
    """A message on its way, and how often its worker died."""

    message: Message
    arrays: dict[str, ray.ObjectRef]
    deaths: int = 0


class RayGrid(SimulatedGrid):
    """Hands messages to the workers in their order, one at a time each.

    Where Ray runs in this process already, the workers join it; else it is started, and ended by
    `close`. Raises RunError where Ray has fewer GPUs than the workers want.
    """

    def __init__(self, app: str, nodes: Nodes, engine: EngineSettings) -> None:
        super().__init__(nodes)
        self._app, self._engine = app, engine
        self._shared: dict[int, tuple[weakref.ref[ArrayRecord], ray.ObjectRef]] = {}
        self._tasks: dict[str, Task] = {}
        self._queue: collections.deque[str] = collections.deque()
        self._running: dict[ray.ObjectRef, tuple[str, Any]] = {}
        self._ended: dict[str, Message] = {}
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            _start_ray(engine)
        self._check_what_is_there()
        self._idle = [self._new_worker() for _ in range(engine.workers)]

    def _check_what_is_there(self) -> None:
        engine, there = self._engine, ray.cluster_resources()
        for resource, name, each, hint in (
            ("CPU", "processors", engine.cpus_per_worker, "set"),
            ("GPU", "GPUs", engine.gpus_per_worker, "set engine.simulated_gpus or"),
        ):
            wanted, found = engine.workers * each, there.get(resource, 0)
            if wanted > found:
                self._end_ray()
                raise RunError(
                    f"engine: {engine.workers} workers with {each:g} {name} each want {wanted:g} "
                    f"{name}, Ray has {found:g}; {hint} fewer workers"
                )

    def _new_worker(self) -> Any:
        engine = self._engine
        options = {"num_cpus": engine.cpus_per_worker, "num_gpus": engine.gpus_per_worker}
        actor = ray.remote(max_restarts=0, max_task_retries=0)(Worker)
        return actor.options(**options).remote(self._app, engine.cpus_per_worker)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages to answer; their ids, in the same order."""
        numbers = []
        for message in messages:
            number = self._number(message)
            light, arrays = self._take_out_arrays(message)
            self._tasks[number] = Task(light, arrays)
            self._queue.append(number)
            numbers.append(number)
        self._hand_out()
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Replies that have come; waits until there is at least one."""
        wanted = list(message_ids)
        while wanted and not any(number in self._ended for number in wanted):
            self._collect()
        return iter([self._ended.pop(number) for number in wanted if number in self._ended])

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for worker in [*self._idle, *(worker for _, worker in self._running.values())]:
            ray.kill(worker)
        self._end_ray()

    def _end_ray(self) -> None:
        if self._started_ray:
            ray.shutdown()

    def _take_out_arrays(self, message: Message) -> tuple[Message, dict[str, ray.ObjectRef]]:
        records = message.content.array_records
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

    def _hand_out(self) -> None:
        while self._queue and self._idle:
            number, worker = self._queue.popleft(), self._idle.pop(0)
            task = self._tasks[number]
            context = self._contexts[task.message.metadata.dst_node_id]
            reply = worker.answer.remote(task.message, task.arrays, context)
            self._running[reply] = (number, worker)

    def _collect(self) -> None:
        ready, _ = ray.wait(list(self._running), num_returns=1)
        for reference in ready:
            number, worker = self._running.pop(reference)
            task = self._tasks[number]
            try:
                reply, state = ray.get(reference)
            except ray.exceptions.RayError as error:
                ray.kill(worker)
                self._bury(number, task, error)
                continue
            self._idle.append(worker)
            self._contexts[task.message.metadata.dst_node_id].state = state
            self._end(number, reply)
        self._hand_out()

    def _bury(self, number: str, task: Task, error: Exception) -> None:
        """A worker died: replace it, and try its message again unless that was tried enough.

        Raises RunError where it could not even start: no other one could.
        """
        if getattr(error, "actor_init_failed", False):
            raise RunError(f"a worker cannot start: {str(error).strip().splitlines()[-1]}")
        self.deaths += 1
        task.deaths += 1
        node = task.message.metadata.dst_node_id
        LOG.warning("a worker died at a message to node %d (%s)", node, type(error).__name__)
        self._idle.append(self._new_worker())
        if task.deaths <= self._engine.retries:
            self._queue.appendleft(number)
        else:
            dead = Error(ErrorCode.CLIENT_APP_CRASHED, f"its worker died {task.deaths} times")
            self._end(number, Message(dead, reply_to=task.message))
        self._hand_out()

    def _end(self, number: str, reply: Message) -> None:
        self._ended[number] = reply
        del self._tasks[number]


def _start_ray(engine: EngineSettings) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        ray.init(
            num_cpus=engine.workers * engine.cpus_per_worker,
            num_gpus=engine.simulated_gpus or None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )
