"""The cost of a round of no-ops, and what a server holds in memory."""

import os
import time

import numpy as np
import pytest
from slow import slow

from experiments.benchmarks import engine_overhead, memory
from experiments.benchmarks.contestants import mute
from experiments.benchmarks.harness import Child, Failed, Setting
from fedspeech import tensors

TINY = "benchmark-tiny"
LIMIT = 120.0


@slow
def test_engine_overhead(tmp_path):
    plan = engine_overhead.Plan((2, 5), 2, (engine_overhead.OURS,))
    rows = list(engine_overhead.rows(Setting(tmp_path), plan))
    assert [row["clients"] for row in rows] == [2, 5]
    assert all(len(row["seconds"]["values"]) == 2 for row in rows)


def test_watching_memory():
    idle = memory.memory(os.getpid())
    with memory.Watch(os.getpid()) as watch:
        block = np.ones(2**25)  # 256 MiB
        time.sleep(0.2)
        del block
    above = watch.above(idle)["anonymous above idle, MiB"]
    assert 250 < above < 300


def grow(channel, mib):
    channel.answer("ready")
    block = np.ones(mib * 2**17)
    time.sleep(60)
    del block


def test_a_process_above_its_memory_is_ended(tmp_path):
    child = Child(grow, 512, log=tmp_path / "log")
    child.receive(LIMIT)
    idle = memory.memory(child.pid)["RssAnon"]
    with memory.Watch(child.pid, idle + 300) as watch, pytest.raises(Failed, match="-9"):
        child.receive(LIMIT)
    assert watch.ended and watch.peak["RssAnon"] < idle + 600


@slow
def test_memory_of_our_server(tmp_path):
    plan = memory.Plan((4,), (), model=TINY, k=2, best=2)
    rows = list(memory.rows(Setting(tmp_path), plan))
    assert [row["step"] for row in rows] == ["fine-tuning", "mean", "random", "kbest"]
    assert {row["speakers"] for row in rows} == {4}
    assert all(row["resident, MiB"] > row["anonymous, MiB"] > 0 for row in rows)
    assert not (tmp_path / "memory-4").exists()


@slow
def test_our_server_does_not_hold_the_models(tmp_path):
    """Eighty speakers more, with 14.5 MB each, take less than a third of that; in both cases as
    many M_s are built side by side as may be."""
    plan = memory.Plan((40, 120), (), model="benchmark-4m", k=4)
    above = {
        (row["step"], row["speakers"]): row["anonymous above idle, MiB"]
        for row in memory.rows(Setting(tmp_path), plan)
    }
    model = tensors.size(mute.generic(mute.description(plan.model), 0)) / 2**20
    for step in ("fine-tuning", "mean", "random"):
        assert above[step, 120] - above[step, 40] < 80 * model / 3


def test_a_disk_that_is_too_small_takes_fewer_speakers(tmp_path, monkeypatch):
    size = tensors.size(mute.generic(mute.description(TINY), 0))
    free = os.statvfs(tmp_path)
    monkeypatch.setattr(memory, "MOST_OF_THE_DISK", 2.5 * size / (free.f_bavail * free.f_frsize))
    monkeypatch.setattr(memory, "_ours", lambda setting, plan, number: iter([number]))
    plan = memory.Plan((1, 20, 400), (), model=TINY)
    assert list(memory.rows(Setting(tmp_path), plan)) == [1, 2]
