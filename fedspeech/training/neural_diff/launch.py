"""Run an experiment on diffs: every cell once, on some processes, and the results."""

import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedspeech import corpus, models
from fedspeech.config.neural_diff import NeuralDiffConfig
from fedspeech.corpus import statistics
from fedspeech.errors import RunError
from fedspeech.progress import stage
from fedspeech.run_folder import RunFolder, cache_folder
from fedspeech.training.neural_diff import results, tasks, worker
from fedspeech.training.neural_diff.cells import Cell, plan
from fedspeech.training.neural_diff.task import Task


def launch(settings: NeuralDiffConfig, folder: Path, resume: bool) -> None:
    """Run an experiment in `folder`. Raises FedSpeechError for whatever is the user's to mend.

    A cell that is finished is not trained again. The results are the same to the byte whatever the
    number of workers and however often the run was interrupted.
    """
    if settings.recognition is not None:
        models.find(settings.recognition.model.name)
    run = RunFolder(folder.absolute())
    run.open(settings, resume)
    try:
        stages: list[dict[str, Any]] = []
        with _timed(stages, "corpus and features"):
            task = _task(settings, run)
        cells = plan(settings, len(task.generations))
        with _timed(stages, "trainings"):
            _finish_all(settings, run.path, cells)
        figures = {cell: _read(worker.record(run.path, cell)) for cell in cells}
        run.write_json("results.json", results.assemble(settings, task, figures))
        run.write_json("timing.json", {"stages": stages, "workers": settings.engine.workers})
    finally:
        run.close()


def _task(settings: NeuralDiffConfig, run: RunFolder) -> Task:
    """Features are computed here, so that workers only read them."""
    speech = corpus.load(settings.corpus)
    task = tasks.task(settings, speech, cache_folder() / "features")
    run.write_environment(settings.seed, statistics.fingerprint(speech))
    return task


@contextmanager
def _timed(stages: list[dict[str, Any]], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    stages.append({"stage": name, "seconds": round(time.monotonic() - started, 2)})


def _finish_all(settings: NeuralDiffConfig, run: Path, cells: Sequence[Cell]) -> None:
    done = {cell for cell in cells if worker.record(run, cell).exists()}
    with stage(len(cells)) as shown:
        shown.start("trainings", len(cells))
        for _ in done:
            shown.skip()
        if len(done) < len(cells):
            for cell in _finished(settings, run, cells, done):
                shown.advance(_told(run, cell))


def _finished(
    settings: NeuralDiffConfig, run: Path, cells: Sequence[Cell], done: set[Cell]
) -> Iterator[Cell]:
    """The cells that are not done, each when it is; none begins before its base is done."""
    waiting = [cell for cell in cells if cell not in done]
    running: set[Future[Cell]] = set()
    workers = settings.engine.workers
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, worker.start, (settings, run)) as pool:
        try:
            while waiting or running:
                ready = [c for c in waiting if c.base is None or c.base in done]
                for cell in ready[: workers - len(running)]:
                    waiting.remove(cell)
                    running.add(pool.submit(worker.finish, cell))
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    done.add(future.result())
                    yield future.result()
        except BrokenProcessPool:
            raise RunError(
                "a worker died (killed, or out of memory); what is finished is kept: "
                "go on with --resume"
            ) from None
        except BaseException:
            # Nobody waits for the trainings of a run that is over.
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _told(run: Path, cell: Cell) -> str:
    """A word on how a cell went."""
    figures = _read(worker.record(run, cell))
    errors, words = (sum(map(sum, figures[name].values())) for name in ("errors", "words"))
    return f"{cell.name}: {100 * errors / words:.2f} %"


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); remove it, and go on with --resume") from None
    return found
