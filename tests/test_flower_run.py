"""`flwr run .`: Flower's own simulation runs the same apps and gives the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
LIMIT = 240
SPEAKERS = 3

EXPERIMENT = """
name = "flower"
corpus = {{ path = "{corpus}" }}
partition = {{ generic = 2, development = 1, train = {{ field = "round", values = [1, 2, 3] }} }}
units = {{ kind = "words" }}
model = {{ name = "tdnn-tiny" }}
generic = {{ epochs = 1, threads = 1 }}
personal = {{ epochs = 1 }}
federation = {{ bases = ["mean", "kbest", "dendrogram"], alphas = [0.0, 0.5, 1.0] }}
engine = {{ grid = "in-process" }}

[rules]
kbest = {{ k = 1 }}
dendrogram = {{ k = 1 }}
"""


@pytest.fixture
def environment(tmp_path):
    """Flower's home in a folder of the test's own; the SuperLink that it starts is ended."""
    home = tmp_path / "flwr"
    values = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FEDSPEECH_CACHE": str(tmp_path / "cache"),
    }
    yield {**os.environ, **values}
    end_processes(f"FLWR_HOME={home}")


def end_processes(variable: str) -> None:
    """End the processes that have this variable in their environment: only ours do."""
    for number in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            if variable.encode() in Path(f"/proc/{number}/environ").read_bytes().split(b"\0"):
                os.kill(number, signal.SIGKILL)
        except OSError:
            continue


def run(environment, *command) -> str:
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def status(environment, number: str) -> str:
    said = json.loads(run(environment, "flwr", "ls", "--run-id", number, "--format", "json"))
    return said["runs"][0]["status"]


def test_flower_gives_the_same_results(tmp_path, tone_corpus, environment):
    corpus = tone_corpus(tmp_path / "corpus", 2 + SPEAKERS)
    experiment = tmp_path / "flower.toml"
    experiment.write_text(EXPERIMENT.format(corpus=corpus))
    ours, flowers = tmp_path / "ours", tmp_path / "flowers"
    run(environment, "fedspeech", "run", str(experiment), "--out", str(ours))
    said = run(
        environment,
        "flwr",
        "run",
        ".",
        "--format",
        "json",
        "--federation-config",
        f"num-supernodes={SPEAKERS}",
        "--run-config",
        f'experiment="{experiment}" out="{flowers}"',
    )
    assert "run-id" in said, said
    number = json.loads(said)["run-id"]
    deadline = time.monotonic() + LIMIT
    while not status(environment, number).startswith("finished"):
        assert time.monotonic() < deadline
        time.sleep(3)
    assert status(environment, number) == "finished:completed"
    names = ["results.json", "ledger.csv"]
    names += sorted(str(path.relative_to(ours)) for path in ours.glob("models/**/*.safetensors"))
    assert len(names) == 2 + 2 + SPEAKERS
    for name in names:
        assert (ours / name).read_bytes() == (flowers / name).read_bytes(), name
