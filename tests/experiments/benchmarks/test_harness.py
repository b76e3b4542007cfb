"""What all benchmarks share: repetitions, and children that may fail."""

import os
import signal
import time
from pathlib import Path

import pytest

from experiments.benchmarks import harness
from experiments.benchmarks.harness import Child, Failed

LIMIT = 120.0


def test_spread_and_ratio():
    assert harness.spread([3.0, 1.0, 2.0, 10.0]) == {
        "median": 2.5,
        "low": 1.0,
        "high": 10.0,
        "values": [3.0, 1.0, 2.0, 10.0],
    }
    # repetition by repetition, not the ratio of the medians, which is 1
    assert harness.ratio([1.0, 2.0, 9.0], [2.0, 1.0, 3.0])["values"] == [0.5, 2.0, 3.0]


def answer_twice(channel):
    for job in channel:
        channel.answer(2 * job)


def misbehave(channel, how):
    channel.answer("ready")
    if how == "raise":
        raise ValueError("of no value")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(60)


def have_a_child(channel, log):
    inner = Child(answer_twice, log=log)
    channel.answer(inner.pid)
    time.sleep(60)


def test_a_child_answers_job_after_job(tmp_path):
    child = Child(answer_twice, log=tmp_path / "log")
    assert [child.ask(job, LIMIT) for job in (1, 20, 300)] == [2, 40, 600]
    child.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "ValueError: of no value"),
        ("die", "its process ended with -9"),
        ("hang", "no answer within 1 s"),
        ("end", "it ended without an answer"),
    ],
)
def test_a_child_that_fails_says_why(tmp_path, how, reason):
    child = Child(misbehave, how, log=tmp_path / "log")
    assert child.receive(LIMIT) == "ready"
    with pytest.raises(Failed, match=reason):
        child.receive(1.0 if how == "hang" else LIMIT)


def test_whoever_kills_a_child_kills_its_children(tmp_path):
    child = Child(have_a_child, tmp_path / "log", log=tmp_path / "log")
    inner = child.receive(LIMIT)
    os.kill(inner, 0)
    child.kill()
    for _ in range(100):
        if not Path(f"/proc/{inner}").exists() or _state(inner) == "Z":
            return
        time.sleep(0.1)
    pytest.fail("it lives on")


def _state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
