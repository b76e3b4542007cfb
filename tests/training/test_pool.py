"""The processes that finish trainings."""

import os
import signal
from typing import NamedTuple

import pytest

from fedspeech import progress
from fedspeech.errors import CorpusError, RunError
from fedspeech.training import pool


class Cell(NamedTuple):
    name: str
    base: "Cell | None" = None


def make():
    return learn


def learn(cell):
    for epoch in range(2):
        pool.epoch_over(cell, epoch, 2, 1.5 - epoch)
    return {"errors": {"s": [1]}, "words": {"s": [4]}}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_epoch_of_a_training_is_told(tmp_path, workers):
    first = Cell("first")
    told: list[str] = []
    cells = [Cell("second", first), first]
    finished = list(pool._finished(cells, set(), workers, tmp_path, make, told.append))
    assert finished == [first, cells[0]]
    assert told == [
        f"{cell.name}: epoch {epoch}"
        for cell in finished
        for epoch in ("1 of 2, loss 1.5", "2 of 2, loss 0.5")
    ]
    assert all(pool.is_finished(tmp_path, cell) for cell in cells)


def run_out():
    def learn(cell):
        raise {"first": MemoryError(), "second": RuntimeError(TOO_MUCH)}[cell.name]

    return learn


TOO_MUCH = (
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_cell_whose_memory_runs_out_is_named(tmp_path, name):
    told = rf"{name} does not fit the memory of its worker: fewer engine\.workers"
    with pytest.raises(RunError, match=told):
        list(pool._finished([Cell(name)], set(), 1, tmp_path, run_out, print))


def is_killed():
    return lambda cell: os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_told(tmp_path):
    with pytest.raises(RunError, match=r"^a worker died .*go on with --resume$"):
        list(pool._finished([Cell("first")], set(), 1, tmp_path, is_killed, print))


def refuse():
    raise CorpusError("the speech is gone")


def test_a_worker_that_cannot_begin_says_why(tmp_path):
    with pytest.raises(CorpusError, match=r"^the speech is gone$"):
        list(pool._finished([Cell("first")], set(), 1, tmp_path, refuse, print))


def test_what_a_cell_goes_on_from_is_there_until_it_is_finished(tmp_path, monkeypatch):
    """So that one that is killed between its model and its figures is not trained again."""
    cell, figures = Cell("first"), {"errors": {"s": [1]}, "words": {"s": [4]}}
    kept = pool.checkpoint(tmp_path, cell)
    kept.parent.mkdir()
    kept.write_bytes(b"state")

    def full(*arguments):
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(pool, "write_whole", full)
        pool.keep(tmp_path, cell, figures)
    assert kept.exists() and not pool.is_finished(tmp_path, cell)
    pool.keep(tmp_path, cell, figures)
    assert pool.is_finished(tmp_path, cell) and not kept.exists()


def test_where_nobody_waits_nothing_is_told():
    assert pool.epoch_over(Cell("alone"), 0, 1, 0.5) is None


def test_an_epoch_is_shown_and_counts_as_no_training(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with progress.stage(2) as shown:
        shown.start("trainings")
        shown.tell("first: epoch 1 of 2, loss 1.5")
        shown.advance("first: 25.00 %")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "trainings: 0/2, first: epoch 1 of 2, loss 1.5"
    assert lines[1].startswith("trainings: 1/2, ") and lines[1].endswith("first: 25.00 %")
