"""A process that trains and judges cells; what it finishes lies in the run's folder."""

import json
import os
import signal
import threading
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

import torch

from fedspeech import corpus, tensors
from fedspeech.config.neural_diff import NeuralDiffConfig
from fedspeech.run_folder import cache_folder
from fedspeech.tensors import Tensors, write_whole
from fedspeech.training.neural_diff import tasks
from fedspeech.training.neural_diff.cells import Cell
from fedspeech.training.neural_diff.learner import Outcome, learn
from fedspeech.training.neural_diff.task import Task


def record(run: Path, cell: Cell) -> Path:
    """Where a finished cell's figures are; it is the last of a cell's files to be written."""
    return run / "cells" / f"{cell.name}.json"


@dataclass(frozen=True)
class Bench:
    """One run, as a worker sees it."""

    settings: NeuralDiffConfig
    task: Task
    run: Path

    def finish(self, cell: Cell) -> None:
        """Train and judge a cell, and write what there is to keep of it."""
        base = None if cell.base is None else tensors.read(self._model(cell.base))
        if cell.model == "BL∞":
            assert base is not None
            outcome = Outcome(base, b"", tensors.size(base), 0.0, 0.0)
        else:
            outcome = learn(self.task, self.settings, cell, base)
        figures = self._figures(cell, outcome)
        if cell.model in ("BL", "diff"):
            tensors.write(self._model(cell), outcome.model)
        if outcome.data:
            data = outcome.data
            path = self.run / "models" / "diffs" / f"{cell.name}.diff"
            write_whole(path, lambda part: part.write_bytes(data))
        text = json.dumps(figures) + "\n"
        write_whole(record(self.run, cell), lambda part: part.write_text(text, encoding="utf-8"))

    def _model(self, cell: Cell) -> Path:
        return self.run / "models" / f"{cell.name}.safetensors"

    def _figures(self, cell: Cell, outcome: Outcome) -> dict[str, Any]:
        known = 0 if cell.model == "BL∞" else cell.generation
        counts = self.task.errors(self._module(known, outcome.model), known, cell.generation)
        return {
            "bytes": outcome.full if outcome.data is None else len(outcome.data),
            "full": outcome.full,
            "sent": outcome.sent,
            "loss": outcome.loss,
            "errors": {speaker: each.errors.tolist() for speaker, each in counts.items()},
            "words": {speaker: each.words.tolist() for speaker, each in counts.items()},
        }

    def _module(self, generation: int, model: Tensors) -> torch.nn.Module:
        module = self.task.model(generation)
        module.load_state_dict(model)
        return module


_bench: Bench | None = None


def start(settings: NeuralDiffConfig, run: Path) -> None:
    """Make this process a worker: one thread, the speech read, gone when the run's process is."""
    global _bench
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_go_with_the_parent, daemon=True).start()
    torch.set_num_threads(1)
    speech = corpus.load(settings.corpus)
    _bench = Bench(settings, tasks.task(settings, speech, cache_folder() / "features"), run)


def _go_with_the_parent() -> None:
    """A killed run must not leave workers behind, which would train on for nobody."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def finish(cell: Cell) -> Cell:
    """Finish a cell in this process."""
    assert _bench is not None
    _bench.finish(cell)
    return cell
