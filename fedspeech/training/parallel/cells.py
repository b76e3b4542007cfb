"""What there is to train: cells, each one model with one seed, finished one after the other."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedspeech import models, tensors
from fedspeech.config.data_parallel import DataParallelConfig
from fedspeech.errors import DivergedError
from fedspeech.evaluation import Counts
from fedspeech.progress import Stage, stage
from fedspeech.run_folder import RunFolder
from fedspeech.tensors import write_whole
from fedspeech.training.over_seeds import counted
from fedspeech.training.parallel import cell
from fedspeech.training.parallel.comparison import named
from fedspeech.training.parallel.crew import Crew
from fedspeech.training.parallel.learner import Training
from fedspeech.training.parallel.task import Task
from fedspeech.training.pool import Figures, is_finished, keep, read

log = logging.getLogger("fedspeech")


class Cell(NamedTuple):
    """One training by some settings with one seed; `name` is that of its files."""

    settings: DataParallelConfig
    seed: int
    name: str
    compared: bool = False
    """Whether it is a result that the training diverges, and no error."""

    @property
    def base(self) -> None:
        """No training comes before it."""
        return

    def training(self, run: RunFolder) -> Training:
        """What learners do for it."""
        return Training(self.settings, self.seed, run.path, self.name)

    def model(self, run: RunFolder) -> Path:
        """Where its model is when it is finished; the description lies beside it."""
        return run.models / f"{self.name}.safetensors"

    def timing(self, run: RunFolder) -> Path:
        """Where it says how its epochs went."""
        return run.path / "cells" / f"{self.name}.timing.json"


def in_turns(rows: Mapping[str, DataParallelConfig]) -> list[Cell]:
    """All rows with their first seed, then with their second one, and so on.

    A machine's pace goes up and down: so it does for all rows of a seed, and not for all seeds of
    a row.
    """
    first, most = next(iter(rows)), max(len(row.seeds) for row in rows.values())
    return [
        Cell(row, row.seeds[turn], named(name, row.seeds[turn]), compared=name != first)
        for turn in range(most)
        for name, row in rows.items()
        if turn < len(row.seeds)
    ]


def unfinished(cells: list[Cell], run: RunFolder) -> list[Cell]:
    """What is left to be trained."""
    return [each for each in cells if not (is_finished(run.path, each) and _is_timed(each, run))]


def _is_timed(each: Cell, run: RunFolder) -> bool:
    if each.timing(run).exists():
        return True
    log.warning("%s: missing; %s is trained again", each.timing(run), each.name)
    return False


def train_all(
    task: Task,
    settings: DataParallelConfig,
    cells: list[Cell],
    left: list[Cell],
    run: RunFolder,
    finished: Callable[[], None],
) -> dict[str, Figures]:
    """Finish the cells that are left, on one Ray; the figures of all, by their names.

    All have the corpus, the features, the model and the `engine` of these settings; `finished` is
    called after each that is trained.
    """
    with stage(sum(each.settings.training.epochs for each in cells)) as shown:
        shown.start("epochs")
        for each in cells:
            if each not in left:  # where a process was killed as it had just finished it
                cell.forget(each.training(run))
                for _ in range(each.settings.training.epochs):
                    shown.skip()
        if left:
            crew = Crew(settings, max(each.settings.parallel.learners for each in left))
            try:
                for each in left:
                    finish(crew, task, each, run, shown)
                    finished()
            finally:
                crew.close()
    return {each.name: read(run.path, each) for each in cells}


def finish(crew: Crew, task: Task, each: Cell, run: RunFolder, shown: Stage) -> None:
    """Train and judge a cell; its model, its timing and its figures lie in the folder then."""
    training = each.training(run)
    try:
        trained = cell.train(crew, task, training, shown)
    except DivergedError as error:
        if not each.compared:
            raise
        _give_up(task, each, run, error)
        cell.forget(training)
        return
    module = task.description.module(trained.model)
    figures = {
        "parameters": models.parameters(module),
        "losses": [epoch["loss"] for epoch in trained.epochs],
        **counted(task.errors(module)),
    }
    path = each.model(run)
    task.description.write(path.with_suffix(".json"))
    tensors.write(path, trained.model)
    went = {"cell": each.name, **trained.happened, "epochs": trained.epochs}
    _write(each.timing(run), went)
    keep(run.path, each, figures)
    cell.forget(training)


def _give_up(task: Task, each: Cell, run: RunFolder, error: DivergedError) -> None:
    """Nothing is left of a training that diverged: it hears no word."""
    module = task.model(each.seed)
    counts = task.errors(module)
    figures = {
        "parameters": models.parameters(module),
        "losses": [],
        "diverged": str(error),
        **counted({s: Counts(own.words, own.words) for s, own in counts.items()}),
    }
    _write(each.timing(run), {"cell": each.name, "epochs": []})
    keep(run.path, each, figures)


def _write(path: Path, content: Any) -> None:
    text = json.dumps(content) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
