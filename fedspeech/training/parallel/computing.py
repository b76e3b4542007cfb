"""How long one learner alone computes for a batch: what a simulation of many is fed with."""

import json
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from fedspeech.config.data_parallel import DataParallelConfig
from fedspeech.progress import stage
from fedspeech.tensors import write_whole
from fedspeech.training.loop import Loop
from fedspeech.training.parallel.loopback import measured_link
from fedspeech.training.parallel.simulated_world import Link
from fedspeech.training.parallel.task import Task

STEPS, SECONDS = 24, 20.0
"""Batches that are measured at most, and for how long at most; at least two are."""


class Measured(NamedTuple):
    """What simulations are fed with."""

    seconds_of_batches: dict[int, list[float]]
    """Of one learner alone, by the number of utterances in a batch."""
    here: Link
    """Between two learners on this machine."""


def measured(
    task: Task, settings: DataParallelConfig, sizes: Iterable[int], folder: Path
) -> Measured:
    """Measure batches of these sizes, and the link; in a run that is resumed as it was then."""
    path = folder / "measured.json"
    if not path.exists():
        found = {}
        with stage(len(set(sizes))) as shown:
            shown.start("batches of one learner")
            for size in sorted(set(sizes)):
                found[size] = measure(task, settings, size)
                shown.advance(f"{statistics.mean(found[size]):.4f} s for {size} utterances")
        text = json.dumps({"seconds_of_batches": found, "here": measured_link()}) + "\n"
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    kept = json.loads(path.read_text(encoding="utf-8"))
    seconds = {int(size): each for size, each in kept["seconds_of_batches"].items()}
    return Measured(seconds, Link(*kept["here"]))


def measure(task: Task, settings: DataParallelConfig, batch_size: int) -> list[float]:
    """Seconds of each of some batches of so many utterances, gradient and step.

    They are those of an epoch in the middle of a training, with the threads of one learner.
    """
    table = settings.model_copy(
        update={
            "parallel": settings.parallel.model_copy(update={"learners": 1}),
            "training": settings.training.model_copy(update={"batch_size": batch_size}),
        }
    )
    with _threads(settings.engine.cpus_per_worker):
        share = task.share(table, settings.seed)
        loop = _Timed(task.model(settings.seed), share)
        found, until = [], time.monotonic() + SECONDS
        for seconds in loop.steps():
            found.append(round(seconds, 6))
            if len(found) > STEPS or (len(found) > 2 and time.monotonic() > until):
                break
    # The first one is slow: memory is asked for, and code is loaded.
    return found[1:] or found


class _Timed(Loop):
    def steps(self) -> Iterator[float]:
        """Seconds of one batch after the other."""
        self.model.train()
        for epoch in (self.settings.epochs // 2, self.settings.epochs // 2 + 1):
            with self.course.draws(epoch).taken_up():
                updates = self.course.updates(epoch)
                for _ in range(self.course.updates_per_epoch):
                    started = time.perf_counter()
                    self.optimizer.zero_grad()
                    self._learn(next(updates), 1)
                    self._step()
                    yield time.perf_counter() - started


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)
