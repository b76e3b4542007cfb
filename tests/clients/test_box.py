"""One box for each device."""

import os
import runpy
import signal
import subprocess
import sys
import threading

import flwr.supernode.cli
import pytest
from flwr.common.config import parse_config_args
from flwr.supernode import fleet_http_connection

from clients import box
from clients.answering import MESSAGE
from fedspeech.errors import RunError
from fedspeech.finding import Finding

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


FINE, MEAN = Finding("port", "open"), Finding("certificate", "old", "renew it", needed=False)
WRONG = Finding("key", "not registered", "register it")


@pytest.mark.parametrize(
    ("found", "refused", "said"),
    [
        ([FINE, MEAN, WRONG], True, ["missing  key: not registered; register it"]),
        ([FINE, WRONG], False, ["missing  key: not registered; register it"]),
        ([FINE, MEAN], True, [box.TWICE]),
        ([FINE, MEAN], False, []),
    ],
)
def test_a_box_says_what_is_missing_or_who_must_have_been_there(
    monkeypatch, capsys, found, refused, said
):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(box, "die_with_parent", lambda: None)
    box.say_why(lambda: found, refused)
    assert capsys.readouterr().out.splitlines() == said


def test_a_silence_is_told_of_each_time_that_it_is_twice_as_long(monkeypatch, tmp_path):
    now, file = [1000.0], tmp_path / "contact"
    monkeypatch.setattr(box.time, "monotonic", lambda: now[0])

    def told_of(silence: box.Silence, seconds: int) -> list[int]:
        begin, found = now[0], []
        for second in range(seconds):
            now[0] = begin + second
            found += [second] * silence.is_long()
        return found

    silence = box.Silence(file)
    assert told_of(silence, 300) == [30, 60, 120, 240]
    file.touch()
    assert told_of(silence, 31) == [30]
    os.utime(file, (1.0, 1.0))  # the clock was put back, and that is an answer too
    assert told_of(silence, 30) == []


def test_what_ends_a_thread_of_the_supernode_is_one_line(monkeypatch, capsys, tmp_path):
    def supernode() -> None:
        def heartbeat() -> None:
            raise RuntimeError("401 Unauthorized\nMore of it: a long story")

        thread = threading.Thread(target=heartbeat)
        thread.start()
        thread.join()

    for owner, name in (
        *((sys, "argv"), (threading, "excepthook"), (fleet_http_connection, "FleetHttpClient")),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(sys, "argv", ["clients.supernode", str(tmp_path / "contact")])
    monkeypatch.setattr(flwr.supernode.cli, "flower_supernode", supernode)
    with pytest.raises(SystemExit):
        runpy.run_module("clients.supernode", run_name="__main__")
    assert capsys.readouterr().err == "RuntimeError: 401 Unauthorized\n"


def test_what_a_box_is_told_its_client_app_finds(tmp_path):
    settings = {"device": str(tmp_path), "speech": "the recordings", "threads": 2, "channel": 1}
    command = box.supernode("localhost:1", "ca.crt", "box.key", 1, settings)
    assert parse_config_args([command[command.index("--node-config") + 1]]) == settings
