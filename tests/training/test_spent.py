"""Stages of a run over the processes that have worked on it."""

import pytest

from fedspeech.errors import RunError
from fedspeech.run_folder import RunFolder
from fedspeech.training import spent
from fedspeech.training.spent import Spent


def test_stages_add_up_over_processes(tmp_path, monkeypatch):
    clock = iter([10, 13, 18, 20, 100, 101, 107])
    monkeypatch.setattr(spent.time, "monotonic", lambda: next(clock))
    one = Spent(RunFolder(tmp_path))
    for stage in ("corpus", "training", "training"):
        one.on(stage)
    other = Spent(RunFolder(tmp_path))
    other.on("corpus")
    other.on("training")
    assert other.stages == [
        {"stage": "corpus", "seconds": 3 + 1},
        {"stage": "training", "seconds": 5 + 2 + 6},
    ]


def test_what_is_damaged_is_told(tmp_path):
    (tmp_path / "spent.json").write_text("{")
    with pytest.raises(RunError, match=r"spent\.json: damaged .*--resume"):
        Spent(RunFolder(tmp_path))
