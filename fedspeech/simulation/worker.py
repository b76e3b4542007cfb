"""What runs in a Ray worker: one process that answers messages for any node."""

import collections
import importlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import ray
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict

from fedspeech.cluster import warned
from fedspeech.simulation.grid import answer, load_app, prepare

QUICK_SECONDS = 0.05
"""After so long a worker hands in what it has; the rest of its batch goes back into the queue."""
BYTES_HELD = 2**28
"""Of tensors that a worker keeps, so that it reads G once and not for every message."""

Arrays = dict[str, ray.ObjectRef]
"""The sets of tensors of a message, by their names, as they lie in Ray's object store."""


class Answers(NamedTuple):
    """Replies to the first messages of a batch with what their nodes keep, how long it took, and
    what was warned of meanwhile.
    """

    replies: list[tuple[Message, RecordDict]]
    seconds: float
    warned: list[str]


class Worker:
    """Answers one message after the other."""

    def __init__(self, app: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._app = load_app(app)
        # The first optimizer would import it, seconds into the first message.
        importlib.import_module("torch._dynamo")
        self._records: collections.OrderedDict[str, ArrayRecord] = collections.OrderedDict()

    def answer(self, batch: Sequence[tuple[Message, Arrays, Context]]) -> Answers:
        """As many replies as QUICK_SECONDS hold, and at least one; none to an empty batch."""
        started = time.monotonic()
        replies: list[tuple[Message, RecordDict]] = []
        lines: list[str] = []
        with warned.kept(lines):
            for message, arrays, context in batch:
                whole = self._whole(message, arrays)
                replies.append((answer(self._app, whole, context), context.state))
                if time.monotonic() - started > QUICK_SECONDS:
                    break
        return Answers(replies, time.monotonic() - started, lines)

    def prepare(self, cohort: Sequence[tuple[Context, tuple[Message, Arrays] | None]]) -> Answers:
        """Fine-tune a cohort; no replies, they come when its devices are asked.

        Raises RunError where the stack does not fit the memory.
        """
        started = time.monotonic()
        lines: list[str] = []
        with warned.kept(lines):
            prepare([(context, self._whole(*one) if one else None) for context, one in cohort])
        return Answers([], time.monotonic() - started, lines)

    def _whole(self, message: Message, arrays: Arrays) -> Message:
        for name, reference in arrays.items():
            message.content[name] = self._record(reference)
        return message

    def _record(self, reference: ray.ObjectRef) -> ArrayRecord:
        key = reference.hex()
        if key not in self._records:
            self._records[key] = ray.get(reference)
        self._records.move_to_end(key)
        while len(self._records) > 1 and sum(map(_size, self._records.values())) > BYTES_HELD:
            self._records.popitem(last=False)
        return self._records[key]


def _size(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())
