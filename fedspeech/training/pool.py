"""A run that is nothing but trainings: its cells, each finished once, on some processes.

A cell is one training with its judgement. What is finished lies in the run's folder, and a run that
goes on does not train it again unless a file of it is missing or damaged. The results are the same
to the byte whatever the number of workers and however often the run was interrupted.
"""

import json
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from fedspeech import accelerator
from fedspeech.config.distillation import DistillationConfig
from fedspeech.config.neural_diff import NeuralDiffConfig
from fedspeech.errors import DivergedError, FedSpeechError
from fedspeech.progress import stage
from fedspeech.run_folder import RunFolder, read_json
from fedspeech.tensors import sha256_of_file, write_whole
from fedspeech.training.spent import Spent
from fedspeech.training.workers import working

log = logging.getLogger("fedspeech")
TELL_SECONDS = 1.0
"""Between two looks at how the trainings come on."""
TRAININGS = "trainings"
"""The stage in which cells are finished."""
DIED = "a worker died (killed, or out of memory); what is finished is kept: go on with --resume"
FILES = "files"
"""In a finished cell's figures: the SHA-256 of every file of it, by its name under `models`."""
Figures = dict[str, Any]
"""Of a finished cell: JSON, with errors and words of every test utterance, by speaker."""


class Cell(Protocol):
    """One training; hashable, and the same in every process."""

    @property
    def name(self) -> str:
        """Of its files."""

    @property
    def base(self) -> "Cell | None":
        """The cell that has to be finished before."""


C = TypeVar("C", bound=Cell)
Make = Callable[[], Callable[[Any], Figures]]
"""Called once in every worker: what finishes a cell there. It has to be picklable."""


class Trainings:
    """The trainings of a run, and how long its stages took."""

    def __init__(self, run: RunFolder, workers: int) -> None:
        self.run, self._workers = run, workers
        self._spent = Spent(run)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """A stage of the run."""
        yield
        self._spent.on(name)

    def finish(self, cells: Sequence[C], make: Make) -> dict[C, Figures]:
        """Finish what is not finished yet; the figures of all cells."""
        run, workers = self.run.path, self._workers
        done = {cell for cell in cells if is_finished(run, cell)}
        for cell in done:  # where a process was killed as it had just finished one
            checkpoint(run, cell).unlink(missing_ok=True)
        with self._trains(), stage(len(cells)) as shown:
            shown.start(TRAININGS, len(cells))
            for _ in done:
                shown.skip()
            if len(done) < len(cells):
                for cell in _finished(cells, done, workers, run, make, shown.tell):
                    shown.advance(_went(cell, read(run, cell)))
                    self._spent.on(TRAININGS)
        return {cell: read(run, cell) for cell in cells}

    @contextmanager
    def _trains(self) -> Iterator[None]:
        """The stage of trainings, which counts also where they are not finished."""
        try:
            yield
        finally:
            self._spent.on(TRAININGS)

    def write_timing(self) -> None:
        """Write timing.json."""
        timing = {"stages": self._spent.stages, "workers": self._workers}
        self.run.write_json("timing.json", timing)


@contextmanager
def opened(
    settings: NeuralDiffConfig | DistillationConfig, folder: Path, resume: bool
) -> Iterator[Trainings]:
    """The trainings of a run in `folder`, which no other process may write in meanwhile.

    Raises RunError where the folder holds another run, or one that is not to be resumed.
    """
    run = RunFolder(folder.absolute())
    run.open(settings, resume)
    try:
        trainings = Trainings(run, settings.engine.workers)
        yield trainings
        trainings.write_timing()
    finally:
        run.close()


def record(run: Path, cell: Cell) -> Path:
    """Where a finished cell's figures are; it is the last of a cell's files to be written."""
    return run / "cells" / f"{cell.name}.json"


def checkpoint(run: Path, cell: Cell) -> Path:
    """Where a training keeps what it goes on from, until its cell is finished."""
    return run / "cells" / f"{cell.name}.checkpoint"


def keep(run: Path, cell: Cell, figures: Figures) -> None:
    """Write the figures of a cell whose files are all there: it is finished."""
    models = run / "models"
    own = sorted(path for path in models.rglob("*") if path.stem == cell.name)
    files = {str(path.relative_to(models)): sha256_of_file(path) for path in own}
    text = json.dumps({**figures, FILES: files}) + "\n"
    write_whole(record(run, cell), lambda part: part.write_text(text, encoding="utf-8"))
    checkpoint(run, cell).unlink(missing_ok=True)


def is_finished(run: Path, cell: Cell) -> bool:
    """Whether a cell need not be trained; a file that is missing or damaged is named.

    Raises RunError where its figures are damaged.
    """
    if not record(run, cell).exists():
        return False
    for name, expected in read(run, cell).get(FILES, {}).items():
        path = run / "models" / name
        if not path.exists() or sha256_of_file(path) != expected:
            log.warning("%s: missing or damaged; %s is trained again", path, cell.name)
            return False
    return True


def read(run: Path, cell: Cell) -> Figures:
    """The figures of a finished cell. Raises RunError where they are damaged."""
    found: Figures = read_json(record(run, cell))
    return found


def _finished(
    cells: Sequence[C],
    done: set[C],
    workers: int,
    run: Path,
    make: Make,
    tell: Callable[[str], None],
) -> Iterator[C]:
    """The cells that are not done, each when it is; none begins before its base is done. `tell` is
    told how those that are trained come on.

    Where one diverges the others are finished all the same, but for those that it is the base of;
    then it is told.
    """
    diverged: list[DivergedError] = []
    waiting = [cell for cell in cells if cell not in done]
    ready: set[Cell] = set(done)
    running: set[Future[C]] = set()
    told: SimpleQueue[str] = multiprocessing.get_context("spawn").SimpleQueue()
    with working(min(workers, len(waiting)), DIED, _start, run, make, told) as pool:
        while True:
            free = [c for c in waiting if c.base is None or c.base in ready]
            for cell in free[: workers - len(running)]:
                waiting.remove(cell)
                running.add(pool.submit(_finish, cell))
            if not running:
                break
            finished, running = wait(running, TELL_SECONDS, FIRST_COMPLETED)
            while not told.empty():
                tell(told.get())
            for future in finished:
                try:
                    cell = future.result()
                except DivergedError as error:
                    diverged.append(error)
                    continue
                ready.add(cell)
                yield cell
    if diverged:
        lines = [*map(str, diverged), "all that did not need it is finished"]
        raise DivergedError("\n".join(lines))


def _went(cell: Cell, figures: Figures) -> str:
    """A word on how a cell went."""
    errors, words = (sum(map(sum, figures[name].values())) for name in ("errors", "words"))
    return f"{cell.name}: {100 * errors / words:.2f} %"


# In a worker.

_run = Path()
_learn: Callable[[Any], Figures]
_told: "SimpleQueue[str] | None" = None


def epoch_over(cell: Cell, epoch: int, epochs: int, loss: float) -> None:
    """Let whoever waits for a cell know that one more of its epochs, from 0, is over."""
    if _told is not None:
        _told.put(f"{cell.name}: epoch {epoch + 1} of {epochs}, loss {loss:.3g}")


def _start(run: Path, make: Make, told: "SimpleQueue[str]") -> None:
    """Make this process a worker: one thread, the speech read."""
    global _run, _learn, _told
    torch.set_num_threads(1)
    try:
        learn = make()
    except FedSpeechError as error:
        # All that is known of a worker that does not start is that it died.
        learn = partial(_refuse, error)
    _run, _learn, _told = run, learn, told


def _refuse(error: FedSpeechError, cell: Cell) -> Figures:
    """What finishes a cell where nothing can."""
    raise error


def _finish(cell: C) -> C:
    """Finish a cell in this process. Raises RunError where its memory runs out."""
    too_large = (
        f"{cell.name} does not fit the memory of its worker: fewer engine.workers leave each more "
        "(go on with --resume), a smaller training.batch_size takes less"
    )
    with accelerator.within_memory(too_large):
        figures = _learn(cell)
    keep(_run, cell, figures)
    return cell
