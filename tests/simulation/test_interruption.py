"""The command itself, on Ray: killed, stopped by Ctrl-C, gone on with."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import going_on
from federations import assert_same, journaled, settings, simulate
from processes import left_running, marked, started_here
from slow import SLOW

from fedspeech import config

BIN = Path(sys.executable).parent
LIMIT = 120
ALL = os.environ.get("FEDSPEECH_FAULTS") == "all"


class Command:
    """`fedspeech run` in a process group of its own, as a terminal starts it."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        environment = {**os.environ, **marked()}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [str(BIN / arguments[0]), *arguments[1:]],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,
            )

    def until(self, folder: Path, answers: int) -> None:
        deadline = time.monotonic() + LIMIT
        while len(journaled(folder)) < answers:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    yield tmp_path / "a run"
    for number in started_here():
        os.kill(number, signal.SIGKILL)


@pytest.mark.faults
@pytest.mark.parametrize("cohort", [1, pytest.param(3, marks=SLOW)])
def test_killed_and_stopped_and_gone_on_with(corpus, tmp_path, folder, cohort):
    undisturbed = simulate(settings(corpus, engine={"cohort": cohort}), tmp_path / "undisturbed")
    file = folder.with_name("small.toml")
    engine = {"grid": "ray", "workers": 2, "cohort": cohort}
    file.write_text(config.dump(settings(corpus, engine=engine)))
    begin = ["fedspeech", "run", str(file), "--out", str(folder)]
    total = len(journaled(undisturbed))

    killed = Command(begin, folder.with_name("killed.log"))
    killed.until(folder, total // 4)
    killed.process.kill()
    assert killed.process.wait(LIMIT) == -signal.SIGKILL
    assert left_running() == []
    assert not (folder / "results.json").exists()

    stopped = Command([*begin, "--resume"], folder.with_name("stopped.log"))
    stopped.until(folder, len(journaled(folder)) + 1)  # while nearly everything is still to do
    os.killpg(stopped.process.pid, signal.SIGINT)
    assert stopped.process.wait(LIMIT) == 130
    assert left_running() == []
    *_, said, command = stopped.log.read_text().splitlines()
    assert said == "stopped; what is finished is kept. Go on with:"
    assert "Traceback" not in stopped.log.read_text()

    gone_on = Command(shlex.split(command), folder.with_name("gone-on.log"))
    assert gone_on.process.wait(LIMIT) == 0, gone_on.log.read_text()
    assert_same(folder, undisturbed)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not ALL, reason="takes minutes; FEDSPEECH_FAULTS=all runs it")
def test_killed_ten_times_at_random_moments(corpus, undisturbed, folder):
    """The first time before there is a journal; each time Ray and its workers end, too."""
    draw = random.Random(0)
    total = len(journaled(undisturbed))
    moments = [0, *sorted(draw.sample(range(1, total), 9))]
    file = folder.with_name("small.toml")
    file.write_text(config.dump(settings(corpus, engine={"grid": "ray", "workers": 2})))
    command = ["fedspeech", "run", str(file), "--out", str(folder)]
    for number, answers in enumerate(moments):
        run = Command([*command, *going_on(folder)], folder.with_name(f"{number}.log"))
        known = len(journaled(folder))
        run.until(folder, answers)
        time.sleep(draw.uniform(0, 4.0 if answers <= known else 0.05))
        assert run.process.poll() is None, run.log.read_text()
        run.process.kill()
        assert run.process.wait(LIMIT) == -signal.SIGKILL
        assert left_running() == []
        assert not (folder / "results.json").exists()
    last = Command([*command, "--resume"], folder.with_name("last.log"))
    assert last.process.wait(LIMIT) == 0, last.log.read_text()
    assert_same(folder, undisturbed)
