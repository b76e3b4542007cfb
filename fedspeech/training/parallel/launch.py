"""Run a data-parallel training: every seed once, the results, and the new G."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedspeech import cluster, corpus, tensors
from fedspeech.config.data_parallel import DataParallelConfig
from fedspeech.run_folder import RunFolder, cache_folder
from fedspeech.training.parallel import results
from fedspeech.training.parallel.task import Task, check

if TYPE_CHECKING:
    from fedspeech.training.parallel.cells import Cell


def launch(settings: DataParallelConfig, folder: Path, resume: bool) -> None:
    """Run a training in `folder`. Raises FedSpeechError for whatever is the user's to mend."""
    check(settings)
    # Ray is imported after this and not before: it is settled what it looks for at its import.
    cluster.prepare(settings.engine.ray_address)
    from fedspeech.training.parallel.cells import Cell, train_all

    run = RunFolder(folder.absolute())
    run.open(settings, resume)
    try:
        started = time.monotonic()
        task = _task(settings, run)
        read_in = time.monotonic()
        cells = [Cell(settings, seed, f"seed-{seed}") for seed in settings.seeds]
        figures = train_all(task, cells, run)
        _ship(task, cells[0], run)
        by_seed = {each.seed: figures[each.name] for each in cells}
        run.write_json("results.json", results.assemble(settings, task.skipped, by_seed))
        stages = {"corpus and features": read_in - started, "training": time.monotonic() - read_in}
        run.write_json("timing.json", _timing(stages, cells, run))
    finally:
        run.close()


def _task(settings: DataParallelConfig, run: RunFolder) -> Task:
    """Features are computed here, so that learners only read them."""
    task = Task(settings, corpus.load(settings.corpus), cache_folder() / "features")
    task.share(settings, settings.seed)  # which says what is wrong before anything starts
    run.write_environment(settings.seed, task.corpus)
    return task


def _ship(task: Task, first: "Cell", run: RunFolder) -> None:
    """Write the first seed's model as a G, as every run of a federation takes it."""
    path = run.models / "generic.safetensors"
    task.description.write(path.with_suffix(".json"))
    tensors.write(path, tensors.read(first.model(run)))


def _timing(stages: dict[str, float], cells: "list[Cell]", run: RunFolder) -> dict[str, Any]:
    return {
        "stages": [{"stage": s, "seconds": round(seconds, 2)} for s, seconds in stages.items()],
        "cells": [json.loads(each.timing(run).read_text(encoding="utf-8")) for each in cells],
    }
