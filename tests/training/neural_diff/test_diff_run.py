"""A whole run: killed and resumed, with one worker and with two, and what it refuses."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tomli_w
from commands import command, until
from typer.testing import CliRunner

from fedspeech.cli import app
from fedspeech.diff.apply import apply
from fedspeech.tensors import read, sha256


@pytest.fixture(scope="module")
def file(recognition, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "small.toml"
    path.write_text(tomli_w.dumps(recognition(name="small")))
    return path


def workers(run: subprocess.Popen) -> list[int]:
    """The process ids of a run's workers."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    return [pid for pid, line in lines.items() if b"spawn_main" in line]


@pytest.fixture(scope="module")
def whole(file, environment, tmp_path_factory) -> Path:
    """The run that nothing happened to, with two workers."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run(
        command("run", file, out), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Diff minus BLC" in done.stdout and "trainings: 26 in" in done.stderr
    return out


def results(folder: Path) -> bytes:
    return (folder / "results.json").read_bytes()


def test_the_folder_has_what_a_run_leaves_behind(whole):
    names = {path.name for path in whole.iterdir()}
    files = {"config.toml", "environment.json", "results.json", "timing.json", "report.html"}
    assert files < names
    found = json.loads(results(whole))
    assert (found["kind"], found["metric"], found["seeds"]) == ("neural-diff", "WER", [0, 1])
    assert len(found["table"]) == 13
    stages = json.loads((whole / "timing.json").read_text())["stages"]
    assert [one["stage"] for one in stages] == ["corpus and features", "trainings"]


def test_what_is_judged_are_the_models_that_the_diffs_files_give(whole):
    models = whole / "models"
    for method in ("sparse", "hash"):
        model = read(models / "seed-1.generation-0.BL.safetensors")
        for t in (1, 2):
            name = f"seed-1.generation-{t}.diff-{method}-10x"
            data = (models / "diffs" / f"{name}.diff").read_bytes()
            model = apply(model, data)
            assert sha256(model) == sha256(read(models / f"{name}.safetensors"))
            told = json.loads((whole / "cells" / f"{name}.json").read_text())
            assert told["bytes"] == len(data)


def test_killed_and_resumed_with_one_worker_it_is_the_same_to_the_byte(
    whole, file, environment, tmp_path
):
    out = tmp_path / "run"
    with subprocess.Popen(
        command("run", file, out), env=environment, stderr=subprocess.DEVNULL
    ) as run:
        until(lambda: len(list(out.glob("cells/*.json"))) >= 5)
        left = workers(run)
        run.send_signal(signal.SIGKILL)
    assert len(left) == 2
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), 20)
    before = {path: path.stat().st_mtime_ns for path in out.glob("cells/*.json")}
    assert 5 <= len(before) < 26 and not (out / "results.json").exists()
    again = command("run", file, out, "--resume", "--set", "engine.workers=1")
    done = subprocess.run(again, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert results(out) == results(whole)
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written  # not trained again
    for path in (whole / "models").rglob("*.*"):
        assert (out / path.relative_to(whole)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("whom", "how", "status", "said"),
    [
        ("a worker", signal.SIGKILL, 2, "fedspeech: a worker died (killed, or out of memory)"),
        ("the run", signal.SIGINT, 130, "stopped; what is finished is kept. Go on with:"),
    ],
)
def test_a_run_that_is_stopped_says_how_to_go_on(
    file, environment, tmp_path, whom, how, status, said
):
    out = tmp_path / "run"
    started = time.monotonic()
    with subprocess.Popen(
        command("run", file, out), env=environment, stderr=subprocess.PIPE, text=True
    ) as run:
        until(lambda: len(list(out.glob("cells/*.json"))) >= 2)
        left = workers(run)
        os.kill(left[0] if whom == "a worker" else run.pid, how)
        _, errors = run.communicate(timeout=30)
    assert run.returncode == status
    assert said in errors and "--resume" in errors and "Traceback" not in errors
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), 20)
    assert time.monotonic() - started < 60


def test_a_second_run_into_the_folder_is_refused(whole, file, environment, monkeypatch):
    monkeypatch.setenv("FEDSPEECH_CACHE", environment["FEDSPEECH_CACHE"])
    done = CliRunner().invoke(app, ["run", str(file), "--out", str(whole)])
    assert "there is a run already" in str(done.exception)
    other = ["run", str(file), "--out", str(whole), "--resume", "--set", "training.epochs=3"]
    assert "training.epochs: 2 there, 3 here" in str(CliRunner().invoke(app, other).exception)


def test_pruning_that_ends_after_the_training_is_told_before_it(
    recognition, file, environment, tmp_path
):
    path, out = tmp_path / "long.toml", tmp_path / "run"
    few = {"epochs": 2, "batch_size": 8, "prune": [2, 9]}
    path.write_text(tomli_w.dumps(recognition(sparse=few)))
    done = subprocess.run(
        command("run", path, out), env=environment, capture_output=True, text=True
    )
    told = "sparse.prune ends with update 9, and seed-0.generation-1.diff-sparse-10x has 8; set"
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr
    assert not list(out.glob("cells/*"))


def test_a_damaged_cell_is_named(whole, file, environment, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSPEECH_CACHE", environment["FEDSPEECH_CACHE"])
    cell = whole / "cells" / "seed-0.generation-1.BL.json"
    text = cell.read_text()
    cell.write_text(text[:40])
    done = CliRunner().invoke(app, ["run", str(file), "--out", str(whole), "--resume"])
    cell.write_text(text)
    assert f"{cell}: damaged" in str(done.exception)


def test_the_report_of_the_folder_is_shown(whole):
    done = CliRunner().invoke(app, ["report", str(whole)])
    assert done.exit_code == 0, done.output
    assert "Regret" in done.output and "diff hash 10x" in done.output
