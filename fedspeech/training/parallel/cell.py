"""One model trained by its learners from beginning to end, whatever happens to them."""

import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray

from fedspeech import tensors
from fedspeech.cluster.warned import Told
from fedspeech.errors import DivergedError, FedSpeechError, RunError
from fedspeech.progress import Stage
from fedspeech.run_folder import read_json
from fedspeech.tensors import Tensors, write_whole
from fedspeech.training.parallel import method_of
from fedspeech.training.parallel.crew import DIED, Crew, gotten
from fedspeech.training.parallel.epochs import Epochs, said, so_far
from fedspeech.training.parallel.generation import Generation, Outcome
from fedspeech.training.parallel.learner import Report, Training
from fedspeech.training.parallel.task import Task

log = logging.getLogger("fedspeech")

MOST_DEATHS = 3
"""How often learners may die or lose each other within one epoch; those that go together, with
their machine, count as one time. Then the run is given up."""
PLACE_SECONDS = 300.0
"""A learner whose process is not there after so long has no place. What it then prepares takes as
long as it takes."""
EVENTS = ("deaths", "restarts", "rejoins")
"""What is counted: learners that died, returns of all of them to a checkpoint, learners that joined
again."""


@dataclass
class Trained:
    """A model, and how it came about."""

    model: Tensors
    epochs: list[dict[str, Any]]
    happened: dict[str, int]
    """How often each of `EVENTS` did."""


def train(crew: Crew, task: Task, training: Training, shown: Stage) -> Trained:
    """Train one model, going on from where an earlier run was interrupted.

    Raises FedSpeechError where a learner says what the user has to mend, or where learners die or
    lose each other again and again.
    """
    one = _Cell(crew, task, training, shown)
    try:
        return one.train()
    except DivergedError:
        one.skip()
        raise
    finally:
        one.dismiss()


@dataclass
class _Cell:
    crew: Crew
    task: Task
    training: Training
    shown: Stage
    epochs: Epochs = field(default_factory=Epochs)
    happened: Counter[str] = field(default_factory=Counter)
    _warned: Told = field(default_factory=Told)
    _joining: dict[int, ray.ObjectRef] = field(default_factory=dict)
    _unfit: set[int] = field(default_factory=set)
    """In whose places nobody can begin: the others go on without them."""
    _members: list[int] = field(default_factory=list)
    _generation: int = 0
    _recent: int = 0
    _shown: int = 0
    _since: float = 0.0
    _starting: bool = True

    def __post_init__(self) -> None:
        parallel = self.training.settings.parallel
        self._method = method_of(parallel)
        self._agreed = self.task.fingerprint(self.training.settings, self.training.seed)
        self._all = list(range(parallel.learners + self._method.servers))
        self._parts = self.task.share(self.training.settings, self.training.seed).parts_per_epoch
        self._record = _record(self.training)

    def train(self) -> Trained:
        first, epoch = self._from_disk()
        for self._shown in range(1, 1 + (epoch or 0)):
            self.shown.skip()
        self._prepare(self._all)
        # What a death costs counts as well, and what is spent of epochs that are learned again.
        self._since += time.monotonic()
        while not (outcome := self._run(first, epoch)).done:
            if outcome.dead:
                self._died(outcome.dead)
            if outcome.lost is not None:
                self._went_wrong("the learners have lost each other", outcome.lost)
            first, epoch = self._mend(outcome)
            self._close_epochs()
        return Trained(self._average(), self.epochs.told, self._counts)

    def skip(self) -> None:
        """No epoch comes any more."""
        for _ in range(self._shown, self.training.settings.training.epochs):
            self.shown.skip()

    def _run(self, first: int, epoch: int | None) -> Outcome:
        self._generation += 1
        name = f"{self.training.name}/{self._generation}"
        seconds = self.training.settings.parallel.form_seconds
        generation = Generation(self.crew, name, self._members, self._told, seconds)
        return generation.run(first, epoch, self._joining, self._can_join)

    def _can_join(self, ready: Sequence[int]) -> bool:
        """Whether more can go on together with these, of whom some may wait for others."""
        every = sorted([*self._members, *ready])
        able = self._method.able(every, self.training.settings.parallel)
        return len(able) > len(self._members)

    def _told(self, report: Report) -> None:
        self._warned.tell(report.warned)
        if not report.over:
            self._show(report)
        elif self._learns(report.learner):
            self.epochs.take(report)
            self._close_epochs()
        else:
            self.epochs.add_bytes(report.epoch, report.measured.bytes)
            self._write_down()

    def _show(self, report: Report) -> None:
        """How the epoch of a learner comes on, and that of the others."""
        seconds = time.monotonic() - self._since
        epoch = self.epochs.comes_on(report, self._learners, seconds)
        self.shown.tell(f"{self.training.name}: epoch {report.epoch + 1}, so far {so_far(epoch)}")

    def _close_epochs(self) -> None:
        """Write down and show the epochs that are over for all who are there."""
        now = time.monotonic()
        while epoch := self.epochs.close(self._learners, now - self._since):
            # By the first epoch of a process, also of one that goes on, no pace is told.
            epoch["starts"], self._starting = self._starting, False
            self._since = now
            self._write_down()
            self._forget_old()
            if len(self.epochs.told) > self._shown:
                # Not by an epoch that is learned again: it may end in the same way again.
                self._recent = 0
                self._shown += 1
                self.shown.advance(f"{self.training.name}: {said(epoch)}")

    def _forget_old(self) -> None:
        """Remove checkpoints from before the last epoch but one that is over for all: those of the
        last one are being written. A server may be further behind with its own."""
        told = len(self.epochs.told)
        kept = next(filter(self._is_kept, range(told, 0, -1)), 0)
        self._forget(lambda epoch: epoch < min(told - 1, kept))

    @property
    def _counts(self) -> dict[str, int]:
        return {name: self.happened[name] for name in EVENTS}

    def _write_down(self) -> None:
        text = json.dumps({"epochs": self.epochs.told, **self._counts}) + "\n"
        write_whole(self._record, partial(Path.write_text, data=text, encoding="utf-8"))

    def _learns(self, number: int) -> bool:
        return number < self.training.settings.parallel.learners

    @property
    def _learners(self) -> list[int]:
        """The members but for a server."""
        return [number for number in self._members if self._learns(number)]

    def _named(self, number: int) -> str:
        return self.training.settings.parallel.member(number)

    def _died(self, learners: Mapping[int, str]) -> None:
        """Count those who died together, each with why."""
        for number, why in learners.items():
            log.warning("%s died: %s", self._named(number), why)
        self.happened["deaths"] += len(learners)
        self._write_down()
        (number, why), *others = learners.items()
        more = "".join(f" and {other}" for other, _ in others)
        self._went_wrong(f"{self._named(number)}{more} died", why)

    def _went_wrong(self, what: str, why: str) -> None:
        """Raise RunError where it has happened too often."""
        self._recent += 1
        if self._recent > MOST_DEATHS:
            raise RunError(
                f"{self.training.name}: {what}, the {self._recent}th time in one epoch ({why}); "
                "what is finished is kept: go on with --resume"
            )

    def _mend(self, outcome: Outcome) -> tuple[int, int | None]:
        """Where to go on, with whom: `members` are settled."""
        living = [number for number in self._members if number not in outcome.dead]
        able = self._method.able(living, self.training.settings.parallel)
        if self._method.restarts or not able:
            return self._restart()
        self._take_in(able)
        away = {*self._members, *self._joining, *self._unfit}
        gone = [n for n in self._all if n not in away]
        self._joining |= self.crew.prepare(self.training, self._agreed, gone) if gone else {}
        return outcome.reached, None

    def _restart(self) -> tuple[int, int | None]:
        """All learners begin again with the last checkpoint; who died is replaced."""
        first, epoch = self._from_disk()
        self.happened["restarts"] += 1
        self._write_down()
        log.warning("all learners go on from the end of epoch %d", epoch or 0)
        self.dismiss()
        self._prepare(self._all, again=True)
        return first, epoch

    def dismiss(self) -> None:
        """End those who were to join: what they begin with is not what comes next."""
        for number in self._joining:
            self.crew.bury(number)
        self._joining.clear()
        self._unfit.clear()

    def _take_in(self, able: list[int]) -> None:
        """Those who can go on, and who can join them, with a model of theirs."""
        parallel = self.training.settings.parallel
        ready = [n for n, waited in self._joining.items() if _is_ready(waited)]
        together = self._method.able(sorted([*able, *ready]), parallel)
        state = self.crew.actor(able[0]).state.remote()
        for number in sorted(set(together) - set(able)):
            prepared = self._joining.pop(number)
            try:
                gotten(prepared)
                gotten(self.crew.actor(number).adopt.remote(state))
                self.epochs.join(number, able[0])
            except ray.exceptions.RayError as error:  # it died again, or who has the model did
                self.crew.bury(number)
                together.remove(number)
                self._died({number: _last_line(error)})
            except FedSpeechError as error:
                self.crew.bury(number)
                together.remove(number)
                self._unfit.add(number)
                log.warning("nobody takes the place of %s: %s", self._named(number), error)
        self._members = self._method.able(together, parallel)
        self.happened["rejoins"] += len(set(self._members) - set(able))
        self._write_down()
        log.warning("learners %s go on together", ", ".join(map(str, self._learners)))

    def _prepare(self, numbers: list[int], again: bool = False) -> None:
        """Let learners begin. Others take the places of those who die and have begun before, with
        this model (`again`) or with another.
        """
        waiting, before = list(numbers), frozenset(numbers) if again else self.crew.there
        while waiting:
            prepared = self.crew.prepare(self.training, self._agreed, waiting)
            self.shown.tell(f"{self.training.name}: learners prepare their speech and their model")
            here = {n: self.crew.actor(n).here.remote() for n in prepared}
            placed = [n for n in here if self._answers(n, here[n], n in before, PLACE_SECONDS)]
            ready = {n for n in placed if self._answers(n, prepared[n], n in before)}
            waiting = [n for n in prepared if n not in ready]
        self._members = list(numbers)

    def _answers(
        self, number: int, asked: ray.ObjectRef, before: bool, seconds: float | None = None
    ) -> bool:
        """Whether a learner answers, or has died. Raises RunError where it takes more seconds."""
        try:
            gotten(asked, seconds)
        except ray.exceptions.GetTimeoutError:
            spare = ray.available_resources()
            raise RunError(
                f"{self._named(number)} has no place after {seconds:g} s; Ray has "
                f"{spare.get('CPU', 0):g} processors and {spare.get('GPU', 0):g} GPUs to spare"
            ) from None
        except DIED as error:
            self.crew.bury(number)
            why = _last_line(error)
            if not before:
                raise RunError(f"{self._named(number)} cannot start: {why}") from None
            self._died({number: why})
            return False
        return True

    def _from_disk(self) -> tuple[int, int | None]:
        """The first part after the last epoch that was told of and that was kept."""
        went = read_json(self._record) if self._record.exists() else {}
        told = went.pop("epochs", [])
        self.happened = Counter(went)
        whole = (e for e in range(len(told), 0, -1) if self._kept(e) == set(self._all))
        some = filter(self._is_kept, range(len(told), 0, -1))
        epoch = next(itertools.chain(whole, some), 0)
        # Learners that were ahead go the same way again, which need not lead to the same place.
        self._forget(lambda other: other > epoch)
        _forget_begun(self.training)
        self._since -= sum(each["seconds"] for each in told[epoch:])
        self.epochs = Epochs(told[:epoch])
        return epoch * self._parts, epoch or None

    def _forget(self, epochs: Callable[[int], bool]) -> None:
        """Remove the checkpoints of some epochs."""
        folder, name = self._record.parent, self.training.name
        for path in folder.glob(f"{name}.learner-*.epoch-*.checkpoint"):
            if epochs(int(path.stem.rpartition("-")[2])):
                path.unlink()

    def _is_kept(self, epoch: int) -> bool:
        """Whether all can go on from there; where nobody restarts, also from another's model."""
        kept = self._kept(epoch)
        servers = {n for n in self._all if not self._learns(n)}
        if self._method.alike:
            return 0 in kept
        return kept == set(self._all) if self._method.restarts else servers < kept

    def _kept(self, epoch: int) -> set[int]:
        return {n for n in self._all if self.training.checkpoint(n, epoch).exists()}

    def _average(self) -> Tensors:
        """The model of all learners: their average, where the method does not leave them alike."""
        if self._method.alike:
            return self._model_of(self._learners[0])
        models = [self._model_of(number) for number in self._learners]
        streams = [sorted(model.items()) for model in models]
        return dict(tensors.weighted_sum(streams, [1 / len(models)] * len(models)))

    def _model_of(self, number: int) -> Tensors:
        try:
            return gotten(self.crew.actor(number).model.remote())  # type: ignore[no-any-return]
        except DIED as error:
            why = str(error).splitlines()[0]
            raise RunError(
                f"{self.training.name}: {self._named(number)} died when all was learned ({why}); "
                "what is finished is kept: go on with --resume"
            ) from None


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def _is_ready(reference: ray.ObjectRef) -> bool:
    return bool(ray.wait([reference], timeout=0)[0])


def forget(training: Training) -> None:
    """Remove what a finished training went on from."""
    folder: Path = training.run / "cells"
    for path in folder.glob(f"{training.name}.learner-*.checkpoint"):
        path.unlink()
    _record(training).unlink(missing_ok=True)
    _forget_begun(training)


def _record(training: Training) -> Path:
    """How its epochs went, while it is trained."""
    return training.run / "cells" / f"{training.name}.epochs.json"


def _forget_begun(training: Training) -> None:
    """Remove what learners that were killed had begun to write; nobody writes now."""
    for path in (training.run / "cells").glob(f".{training.name}.learner-*.part"):
        path.unlink()
