"""What a simulation of many learners is fed with: what some take that know nothing of each other.

A batch takes longer where other learners compute on the same machine, since they share its memory.
So as many as will learn together, or as many as have processors, are measured side by side, and one
of them alone; on a GPU only where learners will have one.

All of it is measured on the machine of the run's own process, also where learners are on others
(`engine.ray_address`), and messages are gloo's, also where learners on GPUs talk by NCCL.
"""

import functools
import itertools
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch._C._distributed_c10d import HashStore

from fedspeech import corpus, machine, models
from fedspeech.accelerator import trains_on_gpu, within_memory
from fedspeech.config.data_parallel import DataParallelConfig
from fedspeech.config.engine import EngineSettings
from fedspeech.errors import RunError
from fedspeech.models.tdnn import MaskedBatchNorm
from fedspeech.progress import stage
from fedspeech.run_folder import cache_folder, read_json
from fedspeech.tensors import write_whole
from fedspeech.training.checkpoint import Writer
from fedspeech.training.parallel.ad_psgd import ADPSGD
from fedspeech.training.parallel.group import LOOPBACK, Group, join, serve
from fedspeech.training.parallel.loop import ParallelLoop
from fedspeech.training.parallel.loopback import FLOAT_BYTES, measured_link
from fedspeech.training.parallel.share import Share
from fedspeech.training.parallel.simulated_world import Checkpoint, Link
from fedspeech.training.parallel.task import Task
from fedspeech.training.parallel.watch import Watch
from fedspeech.training.workers import see_gpus, working

SETTLING = 3.0
"""Seconds in which no batch is measured, and one in any case: memory is asked for, and code and
speech are loaded."""
STEPS, LEAST_SECONDS, MOST_SECONDS = 24, 2.0, 60.0
"""Batches that are measured then, and for how long at least and at most; two in any case."""
CHECKPOINTS = 3
OPTIMIZER_STEPS = 9
TOO_LARGE = (
    "{} too little memory for a batch of {} utterances; a smaller training.batch_size takes less"
)
HARDLY = 1e-12
"""Learning rate: at that of a training a model that is just drawn may diverge."""


class Batch(NamedTuple):
    """Of a learner; `began` and `ended` are seconds of the machine's clock."""

    began: float
    ended: float
    frames: int
    """Of its utterances, all as long as the longest."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return round(self.ended - self.began, 6)


class Measured(NamedTuple):
    """What simulations are fed with."""

    batches: Mapping[int, Mapping[int, Sequence[Batch]]]
    """By the utterances in a batch and by the learners side by side."""
    here: Link
    """Between two learners on this machine."""
    checkpoint: Checkpoint
    step: float
    """Seconds of the optimizer's step, which are in those of a batch."""

    def alone(self, size: int) -> Sequence[Batch]:
        """Batches of so many utterances, where a learner has the machine for itself."""
        return self.batches[size][1]

    def together(self, size: int, places: int) -> list[float]:
        """What 1, 2, ... learners do in a second, where one alone does 1, up to as many as there
        are places for.

        Between those that were measured each takes as much longer as a straight line says, and
        more of them take as long as the most that were measured.
        """
        seconds = {n: mean_seconds(each) for n, each in sorted(self.batches[size].items())}
        numbers = np.arange(1, places + 1)
        each = np.interp(numbers, list(seconds), list(seconds.values()))
        return (numbers * seconds[1] / each).tolist()  # type: ignore[no-any-return]


def measured(
    settings: DataParallelConfig, rows: Iterable[DataParallelConfig], folder: Path
) -> Measured:
    """Measure what all rows need; in a run that is resumed as it was then.

    Raises RunError where what was kept of it is damaged.
    """
    path = folder / "measured.json"
    if not path.exists():
        found = _measured(settings, list(rows), folder)
        text = json.dumps(found._asdict()) + "\n"
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    kept = read_json(path)
    try:
        batches = {
            int(size): {int(n): [Batch(*each) for each in some] for n, some in of_size.items()}
            for size, of_size in kept["batches"].items()
        }
        return Measured(batches, Link(*kept["here"]), Checkpoint(*kept["checkpoint"]), kept["step"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RunError(
            f"{path}: not what this version of fedspeech measures; remove it, and go on with "
            "--resume: it is measured again"
        ) from None


def mean_seconds(batches: Iterable[Batch]) -> float:
    """Of a batch."""
    return statistics.fmean(batch.seconds for batch in batches)


def side_by_side(
    settings: DataParallelConfig, sizes: Sequence[int], learners: int
) -> dict[int, list[Batch]]:
    """Batches of so many utterances, for each size, computed while all of these learners compute;
    of one learner after the other.

    They are processes that share nothing but the machine, with the threads of one learner each.
    Raises RunError where one of them dies.
    """
    died = (
        f"of {learners} learners whose batches were measured side by side one died; there may be "
        "too little memory for them"
    )
    store, port = serve()
    with working(learners, died, see_gpus, _on_gpu(settings)) as pool:
        each = [
            pool.submit(_beside, settings, sizes, rank, learners, port) for rank in range(learners)
        ]
        for learner in as_completed(each):
            learner.result()  # of the first one that fails, which others may wait for
        found = [learner.result() for learner in each]
    del store
    return {size: [each for own in found for each in own[i]] for i, size in enumerate(sizes)}


def learned(task: Task, settings: DataParallelConfig, batch_size: int, group: Group) -> list[Batch]:
    """What a learner of a group computes for some batches of so many utterances, in their order.

    They are those of the middle of a training, and the learner has nobody to talk to. None is
    measured before all have settled, and all compute until each has measured its own.
    """
    loop, method = _alone(task, settings, batch_size)
    first = loop.share.parts_per_epoch * (loop.settings.epochs // 2)
    every = [*range(first, loop.share.parts), *range(first)]
    frames = functools.cache(functools.partial(_frames, loop.share))
    # What the largest takes for the first time is memory that the system may be slow to give.
    _settle(loop, method, sorted(every[:STEPS], key=frames, reverse=True))
    numbers = itertools.cycle(every)
    group.wait_for_all(f"settled with {batch_size}")
    parts: list[int] = []
    times = [time.monotonic()]
    while _measures_on(len(parts), times[-1] - times[0]):
        parts.append(next(numbers))
        loop.learn(method, parts[-1])
        times.append(time.monotonic())
    measured, done = f"measured with {batch_size}", 1
    while int(group.store.add(measured, done)) < group.size:
        loop.learn(method, next(numbers))
        done = 0
    between = zip(itertools.pairwise(times), map(frames, parts), strict=True)
    return [Batch(*when, size) for when, size in between]


def _settle(loop: ParallelLoop, method: ADPSGD, numbers: Sequence[int]) -> None:
    """With these parts, which are measured then."""
    until = time.monotonic() + SETTLING
    for number in itertools.cycle(numbers):
        loop.learn(method, number)
        if time.monotonic() > until:
            return


def _measures_on(batches: int, seconds: float) -> bool:
    """Whether there is another batch after so many, which took so long."""
    few = batches < STEPS or seconds < LEAST_SECONDS
    return batches < 2 or (few and seconds < MOST_SECONDS)


def _frames(share: Share, number: int) -> int:
    """What a part has, in the same variation as it was learned."""
    with share.drawn(number).taken_up():
        features = share.minibatch(share.part(number)).batch.features
    return features.shape[0] * features.shape[1]


def checkpoint_and_step(settings: DataParallelConfig, folder: Path) -> tuple[Checkpoint, float]:
    """What a checkpoint of the model takes in a folder, and the seconds of its optimizer's step;
    medians of a few.

    Both are those of a process as a learner is. Raises RunError where that one dies.
    """
    died = "the learner whose checkpoint was measured died; there may be too little memory for it"
    with working(1, died, see_gpus, _on_gpu(settings)) as pool:
        return pool.submit(_kept_and_stepped, settings, folder).result()


def _kept_and_stepped(settings: DataParallelConfig, folder: Path) -> tuple[Checkpoint, float]:
    torch.set_num_threads(settings.engine.cpus_per_worker)
    size = settings.training.batch_size
    with within_memory(TOO_LARGE.format("a learner alone has", size)):
        loop, method = _alone(_task(settings), settings, size)
        loop.learn(method, 0)  # so that the optimizer has moments
        return _kept(loop, folder / "measured.checkpoint"), _stepped(loop)


def _stepped(loop: ParallelLoop) -> float:
    times = [time.monotonic()]
    for _ in range(OPTIMIZER_STEPS):
        loop.step()
        times.append(time.monotonic())
    return round(statistics.median(end - began for began, end in itertools.pairwise(times)), 6)


def _kept(loop: ParallelLoop, path: Path) -> Checkpoint:
    writer, found = Writer(), []
    for _ in range(CHECKPOINTS):
        began, worked = time.monotonic(), time.process_time()
        writer.save(path, loop, method={})
        copying = time.monotonic() - began
        writer.wait()
        seconds = time.monotonic() - began - copying
        work = min(seconds, max(0.0, time.process_time() - worked - copying))
        found.append(Checkpoint(copying, work, seconds))
    path.unlink()
    return Checkpoint(*(round(statistics.median(each), 6) for each in zip(*found, strict=True)))


def statistics_of(model: torch.nn.Module) -> int:
    """Small tensors gathered in a step: batch statistics, forward and backward, of each
    normalization.
    """
    return 2 * sum(isinstance(module, MaskedBatchNorm) for module in model.modules())


def link_for(task: Task, settings: DataParallelConfig, batches: Iterable[Batch]) -> Link:
    """Between two learners on this machine, for the model that they train and pieces of computing
    as long as those of a batch between two of its gatherings.

    Raises RunError as `measured_link` does.
    """
    model = task.model(settings.seed)
    piece = mean_seconds(batches) / (1 + statistics_of(model))
    return measured_link(piece, FLOAT_BYTES * models.parameters(model), places(settings))


def places(settings: DataParallelConfig) -> int:
    """How many learners this machine has processors for."""
    return max(1, machine.cores() // settings.engine.cpus_per_worker)


def _measured(
    settings: DataParallelConfig, rows: Sequence[DataParallelConfig], folder: Path
) -> Measured:
    own_gpus = settings.engine.gpus_per_worker >= 1 and not settings.engine.simulated_gpus
    most = 1 if own_gpus else places(settings)
    wanted = {1: {settings.training.batch_size}}
    for row in rows:
        for learners in (1, min(row.parallel.learners, most)):
            wanted.setdefault(learners, set()).add(row.training.batch_size)
    batches: dict[int, dict[int, list[Batch]]] = {}
    with stage(len(wanted)) as shown:
        shown.start("batches of learners that know nothing of each other")
        for learners, sizes in sorted(wanted.items()):
            found = side_by_side(settings, sorted(sizes), learners)
            for size, each in found.items():
                batches.setdefault(size, {})[learners] = each
            means = (f"{mean_seconds(each):.4f} s for {n}" for n, each in found.items())
            shown.advance(f"{learners} side by side: {', '.join(means)} utterances")
    link = link_for(_task(settings), settings, batches[settings.training.batch_size][1])
    return Measured(batches, link, *checkpoint_and_step(settings, folder))


def _on_gpu(settings: DataParallelConfig) -> bool:
    return trains_on_gpu(EngineSettings(**settings.engine.model_dump()))


def _task(settings: DataParallelConfig) -> Task:
    return Task(settings, corpus.load(settings.corpus), cache_folder() / "features")


def _alone(
    task: Task, settings: DataParallelConfig, batch_size: int
) -> tuple[ParallelLoop, ADPSGD]:
    """A learner that has nobody to talk to."""
    changed = {
        "batch_size": batch_size,
        "learning_rate": HARDLY,
        "final_learning_rate": HARDLY,
        "scale": 1.0,
    }
    table = settings.model_copy(
        update={
            "parallel": settings.parallel.model_copy(update={"learners": 1}),
            "training": settings.training.model_copy(update=changed),
        }
    )
    share = task.share(table, settings.seed)
    loop = ParallelLoop(task.model(settings.seed), share, Watch(), "a learner that is measured")
    return loop, ADPSGD(loop, Group(0, 1, HashStore()), table.parallel)


def _beside(
    settings: DataParallelConfig, sizes: Sequence[int], rank: int, learners: int, port: int
) -> list[list[Batch]]:
    torch.set_num_threads(settings.engine.cpus_per_worker)
    task = _task(settings)
    group, found = Group(rank, learners, join(LOOPBACK, port)), []
    for size in sizes:
        of_many = f"of {learners} learners side by side one has"
        with within_memory(TOO_LARGE.format(of_many, size)):
            found.append(learned(task, settings, size, group))
    return found
