"""One learner: a process that learns its parts, with others, as often as a group is formed."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedspeech import corpus
from fedspeech.accelerator import computes, within_memory
from fedspeech.cluster import warned
from fedspeech.config.data_parallel import DataParallelConfig
from fedspeech.errors import CorpusError, DiskError, RunError
from fedspeech.run_folder import cache_folder
from fedspeech.tensors import Tensors, state
from fedspeech.training import checkpoint
from fedspeech.training.parallel import method_of
from fedspeech.training.parallel.group import Group, Lost, Seat, form, join
from fedspeech.training.parallel.loop import ParallelLoop
from fedspeech.training.parallel.method import Method
from fedspeech.training.parallel.task import Task
from fedspeech.training.parallel.watch import Measured, Pace, Watch

CUT_SECONDS = 30.0
"""Who is told to come back is done with what it computes so soon, if it waits for nobody."""
TELL_SECONDS = 10.0
"""So often a learner says how it comes on with an epoch."""


class Training(NamedTuple):
    """What is trained: one model, by the settings that hold for it."""

    settings: DataParallelConfig
    seed: int
    run: Path
    name: str
    """Of its files."""

    def checkpoint(self, learner: int, epoch: int) -> Path:
        """What a learner goes on from after so many epochs."""
        return self.run / "cells" / f"{self.name}.learner-{learner}.epoch-{epoch}.checkpoint"


class Order(NamedTuple):
    """Learn from this part on, with whom the seat says."""

    seat: Seat
    store: tuple[str, int]
    """Address of the store to meet at."""
    first: int
    epoch: int | None
    """Begin with the checkpoint after so many epochs, or with what there is in memory."""


@dataclass
class Report:
    """How a learner's epoch went, or how it comes on."""

    learner: int
    epoch: int
    measured: Measured
    parameters: torch.Tensor | None
    """All in one vector, where learners' models differ."""
    warned: Sequence[str] = ()
    """What the learner warned of meanwhile."""
    over: bool = True
    """Whether the epoch is; what is measured of one that is not is for those who watch alone."""


@dataclass
class Ended:
    """A learner is back: at the end of all parts, or because the group is no more."""

    learner: int
    lost: str | None
    reached: int
    """The first part that is left."""


class Learner:
    """What runs in a process of its own; `number` counts the learners, servers come last."""

    def __init__(self, number: int, settings: DataParallelConfig) -> None:
        self._number, self._threads = number, settings.engine.cpus_per_worker
        self._of_run = settings
        self._stopped: dict[str, threading.Event] = {}
        self._warned: list[str] = []
        self._writer = checkpoint.Writer()
        self._group: Group | None = None
        self._generation, self._back = "", threading.Event()

    def here(self) -> None:
        """Answers as soon as the process is there, whatever it still has to prepare."""

    @cached_property
    def _task(self) -> Task:
        """Read and computed when it is first asked for, which may take long."""
        speech = corpus.load(self._of_run.corpus)
        return Task(self._of_run, speech, cache_folder() / "features")

    def prepare(self, training: Training, agreed: str) -> None:
        """Begin a training with its freshly drawn model.

        `agreed` is the fingerprint of the run's corpus and settings. Raises RunError where this
        learner has others, or not the run's folder, or no memory for the model, CorpusError where
        it does not find its speech.
        """
        torch.set_num_threads(self._threads)  # of this thread
        settings, number = training.settings, self._number
        self._check_folder(training.run)
        with self._said_where():
            own = self._task.fingerprint(settings, training.seed)
        if own != agreed:
            raise RunError(
                f"{self._named} has another corpus or other settings than the run: fingerprint "
                f"{own[:12]} there, {agreed[:12]} here"
            )
        parallel = settings.parallel
        slowed = dict(enumerate(parallel.slowed)).get(number, 1.0)
        self._training, self._watch = training, Watch(Pace(slowed, parallel.processor))
        share = self._task.share(settings, training.seed)
        model = self._task.model(training.seed)
        with within_memory(self._too_large):
            self._loop = ParallelLoop(model, share, self._watch, parallel.member(number))
        self._epoch = 0
        self._kept: dict[str, Any] = {}

    def learn(self, order: Order) -> Iterator[Report | Ended]:
        """Learn until all parts are done or the group is lost; a report after every epoch, and now
        and then one in between.

        Its checkpoint is written while the next epoch is learned, and is there when that one is
        told of, and when this ends. Raises RunError where the group does not form, the training
        diverges or the memory runs out, DiskError where a checkpoint cannot be written.
        """
        torch.set_num_threads(self._threads)  # of this thread
        with warned.kept(self._warned), within_memory(self._too_large), self._said_where():
            yield from self._learn(order)

    def _learn(self, order: Order) -> Iterator[Report | Ended]:
        self._begin(order)
        self._generation, self._back = order.seat.generation, threading.Event()
        self._said = time.monotonic()
        method: Method | None = None
        lost: str | None = None
        reached = order.first
        try:
            store = join(*order.store, order.seat.seconds)
            group = self._group = form(store, order.seat, self._watch, self._stop(order))
            self._agree(group)
            method = method_of(self._settings)(self._loop, group, self._settings)
            method.resume(self._kept)
            for number in method.parts(order.first):
                yield from self._crossed(self._loop.share.epoch_of(number), method)
                if not method.serves:
                    self._loop.learn(method, number)
                    yield from self._underway()
            method.finish()
            yield from self._crossed(self._loop.settings.epochs, method)
        except Lost as error:
            lost = str(error)
        finally:
            if method is not None:
                reached = max(reached, method.reached)
                self._kept = method.state()
                method.close()
            if self._group is not None:
                self._group.close()
                self._group = None
            self._back.set()
            # What to go on from is looked for, and removed, when all have come back.
            self._writer.wait()
        yield Ended(self._number, lost, reached)

    def stop(self, generation: str) -> None:
        """Let `learn` come back, from another thread.

        Who waits for a learner whose machine has gone without a word is told by nobody: after a
        while its connections are cut.
        """
        self._stopped.setdefault(generation, threading.Event()).set()
        group, back = self._group, self._back
        if group is None or self._generation != generation:
            return
        if not back.wait(CUT_SECONDS):
            group.cut()

    def state(self) -> dict[str, Any]:
        """What another learner needs to go on beside this one."""
        held = {"method": self._kept, "epoch": self._epoch}
        # Each parameter may be a view of all in one vector, and would be sent with all of it.
        found: dict[str, Any] = checkpoint.copied(checkpoint.states(self._loop, held))
        return found

    def adopt(self, state: dict[str, Any]) -> None:
        """Take over what another learner has."""
        self._loop.model.load_state_dict(state["model"])
        self._loop.optimizer.load_state_dict(state["optimizer"])
        self._kept, self._epoch = state["method"], state["epoch"]

    def model(self) -> Tensors:
        """The model as it is."""
        return state(self._loop.model)

    @property
    def _settings(self) -> Any:
        return self._training.settings.parallel

    def _stop(self, order: Order) -> threading.Event:
        return self._stopped.setdefault(order.seat.generation, threading.Event())

    def _begin(self, order: Order) -> None:
        if order.epoch is None:
            return
        keepers = method_of(self._settings).keepers(self._number, self._settings)
        path = self._kept_by(keepers, order.epoch)
        # Else that of one that has all models, or one that was there.
        path = path or self._kept_by(order.seat.members, order.epoch)
        if path is None:
            raise self._lacks(self._training.checkpoint(self._number, order.epoch))
        (self._kept,) = checkpoint.load(path, self._loop, "method") or [{}]
        self._epoch = order.epoch
        self._watch.take()

    def _check_folder(self, run: Path) -> None:
        """Raise RunError where a cluster's machine does not share the run's folder."""
        if self._of_run.engine.ray_address is not None and not (run / "config.toml").exists():
            raise self._lacks(run)

    def _lacks(self, path: Path) -> RunError:
        return RunError(f"{self._named}: {path} is not there; all machines need the run's folder")

    @property
    def _too_large(self) -> str:
        return (
            f"{self._training.name} does not fit the memory of {self._named}: a smaller "
            "training.batch_size takes less"
        )

    @property
    def _named(self) -> str:
        return f"learner {self._number} on {socket.gethostname()}"

    @contextmanager
    def _said_where(self) -> Iterator[None]:
        """What a cluster's machine cannot read or write in the block is told with its name."""
        try:
            yield
        except (CorpusError, DiskError) as error:
            if self._of_run.engine.ray_address is None:
                raise
            raise type(error)(f"{self._named}: {error}") from None

    def _agree(self, group: Group) -> None:
        """Raise RunError where this learner computes in another way than the first one to come."""
        if self._number >= self._settings.learners:  # a server computes no gradients
            return
        own = computes([self._training.settings.training.precision])
        theirs = group.store.compare_set("computes", "", own).decode()
        if own != theirs:
            raise RunError(
                f"{self._named} computes {own}, another one {theirs}; training.precision says it "
                "for all, engine.gpus_per_worker where"
            )

    def _kept_by(self, learners: Sequence[int], epoch: int) -> Path | None:
        paths = (self._training.checkpoint(number, epoch) for number in learners)
        return next((path for path in paths if path.exists()), None)

    def _underway(self) -> Iterator[Report]:
        if time.monotonic() - self._said < TELL_SECONDS:
            return
        self._said = time.monotonic()
        measured = replace(self._watch.measured)
        yield Report(self._number, self._epoch, measured, None, over=False)

    def _crossed(self, epoch: int, method: Method) -> Iterator[Report]:
        """A report of each epoch that is over before this one; what to go on from is kept."""
        while self._epoch < epoch:
            # With its report the run gives up the checkpoint before the last one.
            self._writer.wait()
            parameters = None if method.alike else self._parameters()
            lines = tuple(self._warned)
            self._warned.clear()
            yield Report(self._number, self._epoch, self._watch.take(), parameters, lines)
            self._epoch += 1
            self._save(method)

    def _save(self, method: Method) -> None:
        if method.alike and self._number > 0:
            return
        path = self._training.checkpoint(self._number, self._epoch)
        self._writer.save(path, self._loop, method=method.state())

    def _parameters(self) -> torch.Tensor:
        vector = torch.nn.utils.parameters_to_vector(self._loop.model.parameters())
        return vector.detach().cpu().clone()
