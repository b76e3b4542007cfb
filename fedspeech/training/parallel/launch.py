"""Run a data-parallel training, or a comparison of many: every row with every seed, and a new G."""

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedspeech import cluster, corpus, machine, tensors
from fedspeech.config.data_parallel import DataParallelConfig
from fedspeech.errors import ConfigError
from fedspeech.run_folder import RunFolder, cache_folder, read_json
from fedspeech.training.parallel import results
from fedspeech.training.parallel.comparison import joined, rows
from fedspeech.training.parallel.computing import measured
from fedspeech.training.parallel.predicted import Predictions
from fedspeech.training.parallel.task import Task, check
from fedspeech.training.spent import Spent

if TYPE_CHECKING:
    from fedspeech.training.parallel.cells import Cell

log = logging.getLogger("fedspeech")


def launch(settings: DataParallelConfig, folder: Path, resume: bool) -> None:
    """Run a training in `folder`. Raises FedSpeechError for whatever is the user's to mend."""
    check(settings)
    # Ray is imported after this and not before: it is settled what it looks for at its import.
    cluster.prepare(settings.engine.ray_address)
    run = RunFolder(folder.absolute())
    run.open(settings, resume)
    try:
        _launch(settings, run)
    finally:
        run.close()


def _launch(settings: DataParallelConfig, run: RunFolder) -> None:
    from fedspeech.training.parallel.cells import in_turns, train_all, unfinished
    from fedspeech.training.parallel.crew import look

    spent = Spent(run)
    every = rows(settings)
    _warn_of_shares(every)
    cells = in_turns(every)
    if left := unfinished(cells, run):
        look(settings, [each.settings.parallel for each in left])
    task = _task(settings, every, run)
    spent.on("corpus and features")
    found = None
    if settings.comparison is not None:
        found = measured(settings, every.values(), run.path / "cells")
        spent.on("batches that simulations are fed with")
    on_training = partial(spent.on, "training")
    try:
        figures = train_all(task, settings, cells, left, run, on_training)
        _ship(task, cells[0], run)
    finally:
        on_training()
    assembled = results.assemble(settings, every, task.skipped, figures)
    run.write_json("results.json", assembled)
    timing = _timing(spent, cells, run)
    if found is not None:
        model = task.model(settings.seed)
        predictions = Predictions(settings, found, len(task.taught), model)
        timing |= {"measured": found._asdict(), "simulated": predictions.table(every)}
    run.write_json("timing.json", timing)


def _task(settings: DataParallelConfig, every: results.Rows, run: RunFolder) -> Task:
    """Features are computed here, so that learners only read them."""
    task = Task(settings, corpus.load(settings.corpus), cache_folder() / "features")
    for row in every.values():
        task.share(row, settings.seed)  # which says what is wrong before anything starts
    if settings.comparison is not None:
        _check_batches(settings.training.batch_size, max(map(joined, every.values())), task)
    run.write_environment(settings.seed, task.corpus)
    return task


def _warn_of_shares(every: results.Rows) -> None:
    """Say of which rows, started here, learners are to have more processors than there are."""
    held = {
        (row.parallel.learners, row.parallel.processor)
        for row in every.values()
        if row.parallel.processor is not None and row.engine.ray_address is None
    }
    for learners, share in sorted(held):
        if learners * share > (cores := machine.cores()):
            log.warning(
                "%d learners of %g of a processor each want %g, and there are %d: one that waits "
                "lends its share to the others",
                *(learners, share, learners * share, cores),
            )


def _check_batches(base: int, largest: int, task: Task) -> None:
    if largest > max(base, len(task.taught)):
        raise ConfigError(
            f"comparison.larger: batches of {largest} utterances, but {len(task.taught)} to learn"
        )


def _ship(task: Task, first: "Cell", run: RunFolder) -> None:
    """Write the first seed's model as a G, as every run of a federation takes it."""
    path = run.models / "generic.safetensors"
    task.description.write(path.with_suffix(".json"))
    tensors.write(path, tensors.read(first.model(run)))


def _timing(spent: Spent, cells: "list[Cell]", run: RunFolder) -> dict[str, Any]:
    return {
        "stages": spent.stages,
        "cells": [read_json(each.timing(run)) for each in cells],
    }
