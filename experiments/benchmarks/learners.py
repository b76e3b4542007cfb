"""Learners who take turns with trainings of one model, and what the simulation says of them.

Trainings are those of `fedspeech train`, learners on Ray with one thread each, on the synthetic
corpus without augmentation. A pace is that of all epochs of a training but the first, in which
learners start. Beside each of these the checkpoint of the one before is written.
"""

import itertools
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.benchmarks.harness import Row, Setting, say, spread
from fedspeech import cluster, corpus
from fedspeech.config.data_parallel import DataParallelConfig
from fedspeech.progress import stage
from fedspeech.run_folder import cache_folder

if TYPE_CHECKING:
    from fedspeech.training.parallel.computing import Batch

SPEAKERS = 9
"""Of whom one tests."""


class Epoch(NamedTuple):
    """The mean of those of a training."""

    seconds: float
    pace: float
    """Utterances per second."""


class Learners:
    """They wait for trainings by variations of the same settings."""

    def __init__(self, settings: DataParallelConfig, setting: Setting, count: int) -> None:
        from fedspeech.training.parallel.crew import Crew
        from fedspeech.training.parallel.task import Task

        self.settings, self.count = settings, count
        self.folder, self._numbers = setting.folder, itertools.count()
        (self.folder / "cells").mkdir(exist_ok=True)
        self.task = Task(settings, corpus.load(settings.corpus), cache_folder() / "features")
        self.crew = Crew(settings, count)

    def row(self, longer: int = 1, **parallel: Any) -> DataParallelConfig:
        """Settings that differ in these of `[parallel]`, with `longer` times as many epochs."""
        table = self.settings.model_dump(mode="json")
        table["parallel"] |= parallel
        table["training"]["epochs"] *= longer
        return DataParallelConfig.model_validate(table)

    def epoch(self, row: DataParallelConfig) -> Epoch:
        """Of one training."""
        from fedspeech.training.parallel import cell
        from fedspeech.training.parallel.learner import Training

        name = f"{row.parallel.method}-{next(self._numbers)}"
        training = Training(row, row.seed, self.folder, name)
        with stage(row.training.epochs) as shown:
            shown.start(name)
            epochs = cell.train(self.crew, self.task, training, shown).epochs[1:]
        cell.forget(training)
        seconds, heard = (sum(epoch[key] for epoch in epochs) for key in ("seconds", "utterances"))
        return Epoch(seconds / len(epochs), heard / seconds)


@contextmanager
def learners(settings: DataParallelConfig, setting: Setting, count: int) -> Iterator[Learners]:
    """So many of them, and Ray, in the block."""
    # Before Ray is imported.
    cluster.prepare(None)
    found = Learners(settings, setting, count)
    try:
        yield found
    finally:
        found.crew.close()


def settings_of(
    setting: Setting, model: str, batch_size: int, batches: int, epochs: int
) -> DataParallelConfig:
    """Of a training with so many batches of so many utterances in an epoch."""
    # Whoever trains trains with all of it, what is called test there as well.
    utterances = -(-batches * batch_size // (SPEAKERS - 1)) - 1
    synthetic = {"speakers": SPEAKERS, "train_utterances": utterances, "test_utterances": 1}
    return DataParallelConfig.model_validate(
        {
            "seeds": [setting.seed],
            "corpus": {"recipe": "synthetic", "synthetic": synthetic | {"seed": setting.seed}},
            "test": {"speakers": 1},
            "model": {"name": model},
            "training": {
                **{"epochs": epochs, "batch_size": batch_size, "clean": 1.0},
                "augmentation": {"speeds": [1.0]},
            },
        }
    )


class Turns(NamedTuple):
    """What was measured: an epoch of each row in each repetition, and of learners that know nothing
    of each other batches, by how many were side by side.
    """

    rows: Mapping[str, DataParallelConfig]
    epochs: Mapping[str, list[Epoch]]
    beside: Mapping[int, list["Batch"]]


def in_turns(bench: Learners, rows: Mapping[str, DataParallelConfig], repeats: int) -> Turns:
    """Everybody takes a turn in each repetition, and so do learners that know nothing of each
    other: one alone, and as many side by side as learn together.
    """
    from fedspeech.training.parallel.computing import places, side_by_side

    size = bench.settings.training.batch_size
    epochs: dict[str, list[Epoch]] = {name: [] for name in rows}
    beside: dict[int, list[Batch]] = {n: [] for n in (1, min(bench.count, places(bench.settings)))}
    for repeat in range(repeats):
        say(f"{bench.settings.model.name}, batches of {size}, repetition {repeat}")
        for count, batches in beside.items():
            batches += side_by_side(bench.settings, [size], count)[size]
        for name, row in rows.items():
            epochs[name].append(bench.epoch(row))
    return Turns(rows, epochs, beside)


def simulated(bench: Learners, turns: Turns, table: str) -> Iterator[Row]:
    """Seconds of an epoch, beside those that were measured."""
    from fedspeech.training.parallel.computing import Measured, checkpoint_and_step, link_for
    from fedspeech.training.parallel.predicted import Predictions
    from fedspeech.training.parallel.simulated import predict

    link = link_for(bench.task, bench.settings, turns.beside[1])
    kept = checkpoint_and_step(bench.settings, bench.folder)
    size = bench.settings.training.batch_size
    fed = Measured({size: turns.beside}, link, *kept)
    model = bench.task.model(bench.settings.seed)
    predictions = Predictions(bench.settings, fed, len(bench.task.taught), model)
    for name, row in turns.rows.items():
        seconds = predict(predictions.of_row(row)).seconds
        measured = [epoch.seconds for epoch in turns.epochs[name]]
        yield {
            "table": table,
            "model": bench.settings.model.name,
            "utterances a batch": size,
            "way": name,
            "learners": row.parallel.learners,
            "measured, s": spread(measured),
            "simulated, s": seconds,
            "simulated / measured": seconds / statistics.median(measured),
        }
