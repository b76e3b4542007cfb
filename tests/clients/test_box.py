"""One box for each device."""

import os
import signal
import subprocess
import sys

import pytest

from clients import box
from clients.answering import MESSAGE
from fedspeech.errors import RunError

HOLD = """
import os, sys, time
from pathlib import Path
from fedspeech.device.lock import alone

with alone(Path(sys.argv[1])):
    if (fork := os.fork()) == 0:
        time.sleep(600)
    print(fork, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a box; of what it does only the first thing."""

    def begin(self) -> None:
        self._answering.tidy()
        (tmp_path / "written").write_text("by the box")

    monkeypatch.setattr(box.Box, "run", begin)
    settings = {"device": str(tmp_path)}
    usual = os.umask(0o022)
    yield lambda: box.run("localhost:1", "ca.crt", "box.key", 1, settings)
    os.umask(usual)


def test_a_second_box_is_refused_and_leaves_the_first_ones_message(run, tmp_path):
    """And where the first is killed, a fork that is still there does not stand in the way."""
    message = tmp_path / MESSAGE
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    fork = int(first.stdout.readline())
    try:
        message.write_bytes(b"of the first")
        with pytest.raises(RunError, match="another `fedspeech box` answers for this device"):
            run()
        assert message.read_bytes() == b"of the first"
        first.kill()
        first.wait()
        run()
        assert not message.exists()
    finally:
        first.kill()
        os.kill(fork, signal.SIGKILL)
        first.wait()
        first.stdout.close()


def test_what_a_box_writes_nobody_else_may_read(run, tmp_path):
    run()
    assert (tmp_path / "written").stat().st_mode & 0o777 == 0o600
