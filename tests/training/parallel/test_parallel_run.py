"""Whole runs of `fedspeech train` on Ray: what they leave, and what happens when learners die."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
from commands import command, until
from slow import SLOW
from typer.testing import CliRunner

from fedspeech import evaluation, tensors
from fedspeech.cli import app
from fedspeech.config import Config, DataParallelConfig
from fedspeech.corpus import load
from fedspeech.models import description
from fedspeech.tensors import read, sha256
from fedspeech.training.parallel.task import Task
from server import generic

QUICK = {
    "epochs": 2,
    "batch_size": 4,
    "precision": "fp32",
    "augmentation": {"speeds": [1.0]},
    "dropout": [[0.0, 0.1]],
}


@pytest.fixture(scope="module")
def tones(tone_corpus, tmp_path_factory) -> Path:
    """Four speakers, 12 utterances each."""
    return tone_corpus(tmp_path_factory.mktemp("tones"), 4, rounds=2)


@pytest.fixture(scope="module")
def table(tones) -> Callable[..., dict]:
    def make(training: dict = {}, **parallel) -> dict:  # noqa: B006
        return {
            "name": "small",
            "kind": "data-parallel",
            "corpus": {"path": str(tones)},
            "test": {"speakers": 1},
            "features": {"kind": "log-mel", "dimension": 16},
            "units": {"kind": "words"},
            "model": {"name": "tdnn-tiny"},
            "training": QUICK | training,
            "parallel": {"learners": 2, **parallel},
        }

    return make


@pytest.fixture(scope="module")
def train(environment) -> Callable[..., tuple[Path, subprocess.Popen]]:
    """Begin a run in a folder; where it lies, and its process."""

    def begin(what: dict, folder: Path, *more: str) -> tuple[Path, subprocess.Popen]:
        file, out = folder / "small.toml", folder / "run"
        file.write_text(tomli_w.dumps(what))
        line = command("train", file, out, *more)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return out, subprocess.Popen(line, env=environment, **pipes)

    return begin


def finished(run: subprocess.Popen) -> str:
    out, err = run.communicate(timeout=400)
    assert run.returncode == 0, err
    return out + err


def learners(run: subprocess.Popen) -> list[int]:
    """The processes of the learners of a run, which are its children's."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = status.read_bytes()
            parents = _parents(int(status.parent.name))
        except OSError:
            continue
        if name.startswith(b"ray::Learner") and run.pid in parents:
            found.append(int(status.parent.name))
    return sorted(found)


def _parents(process: int) -> list[int]:
    found = []
    while process > 1:
        stat = Path(f"/proc/{process}/stat").read_text()
        process = int(stat.rpartition(")")[2].split()[1])
        found.append(process)
    return found


@pytest.fixture(scope="module")
def whole(train, table, tmp_path_factory) -> Path:
    """The run that nothing happened to: two learners, synchronous."""
    out, run = train(table(method="allreduce"), tmp_path_factory.mktemp("whole"))
    said = finished(run)
    assert "utterances/s" in said and "consensus 0" in said
    return out


def test_a_run_leaves_a_generic_model(whole, table, tmp_path):
    out = whole
    results = json.loads((out / "results.json").read_text())
    (row,) = results["table"]
    assert (row["way"], row["learners"], results["kind"]) == ("allreduce", 2, "data-parallel")
    path = out / "models" / "generic.safetensors"
    about = description.read(path.with_suffix(".json"))
    settings = DataParallelConfig.model_validate(table())
    task = Task(settings, load(settings.corpus), tmp_path / "cache")
    (counts,) = task.errors(about.module(read(path))).values()
    assert row["seeds"] == [pytest.approx(evaluation.pooled_rate([counts.errors], [counts.words]))]
    timing = json.loads((out / "timing.json").read_text())
    (cell,) = timing["cells"]
    assert [epoch["utterances"] for epoch in cell["epochs"]] == [36, 36]
    size = tensors.size(dict(about.module(read(path)).named_parameters()))
    assert cell["epochs"][0]["bytes"] > 2 * 5 * size  # two learners, five steps, a model each
    personalization = {
        "model": {"name": "tdnn-tiny"},
        "features": about.features.model_dump(),
        "units": {"kind": "words"},
        "generic": {"model": str(path)},
    }
    generic.check(Config.model_validate(personalization))


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_killed_and_resumed_it_is_the_same_to_the_byte(whole, train, table, tmp_path):
    out, run = train(table(method="allreduce"), tmp_path)
    until(lambda: list(out.glob("cells/*.checkpoint")) or run.poll(), 400)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (out / "results.json").exists()
    finished(train(table(method="allreduce"), tmp_path, "--resume")[1])
    assert (out / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    name = Path("models") / "generic.safetensors"
    assert sha256(read(out / name)) == sha256(read(whole / name))


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "method",
    [
        *("allreduce", "ad-psgd"),
        *(pytest.param(way, marks=SLOW) for way in ("bmuf", "ring", "parameter-server")),
    ],
)
def test_a_learner_that_is_killed_ends_no_run(train, table, tmp_path, method):
    """Synchronous methods begin again with the last checkpoint, the others go on without it."""
    long = {"epochs": 40, "batch_size": 2}
    out, run = train(table(long, method=method, learners=3), tmp_path)
    until(lambda: list(out.glob("cells/*.epochs.json")) or run.poll(), 400)
    assert run.poll() is None, finished(run)
    os.kill(learners(run)[1], signal.SIGKILL)
    said = finished(run)
    timing = json.loads((out / "timing.json").read_text())
    assert timing["cells"][0]["deaths"] == 1
    assert len(timing["cells"][0]["epochs"]) == 40
    assert "learner " in said and " died" in said
    utterances = [epoch["utterances"] for epoch in timing["cells"][0]["epochs"]]
    if method in ("allreduce", "bmuf"):
        assert utterances == [36] * 40
    else:
        # The parts that were underway are lost, and those that were left over at the end.
        assert sum(utterances) > 36 * 40 - 3 * 2 * 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learners": 37}, "parallel.learners: 37 learners, but 36 utterances to learn"),
    ],
)
def test_what_cannot_be_is_told_before_anything_starts(table, tmp_path, changed, message):
    file = tmp_path / "small.toml"
    file.write_text(tomli_w.dumps(table(**changed)))
    done = CliRunner().invoke(app, ["train", str(file), "--out", str(tmp_path / "run")])
    assert message in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_a_ray_that_nobody_runs_is_told(table, tmp_path):
    what = table() | {"engine": {"ray_address": "127.0.0.1:1"}}
    file = tmp_path / "small.toml"
    file.write_text(tomli_w.dumps(what))
    done = CliRunner().invoke(app, ["train", str(file), "--out", str(tmp_path / "run")])
    assert "engine.ray_address = '127.0.0.1:1': cannot join Ray there" in str(done.exception)


def test_what_is_no_training_is_told(tmp_path):
    path = tmp_path / "other.toml"
    path.write_text('name = "other"\n')
    done = CliRunner().invoke(app, ["train", str(path)])
    assert f"{path}: kind = personalization, expected data-parallel" in str(done.exception)
