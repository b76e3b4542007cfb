"""A whole run: killed and resumed, with one worker and with two, and what comes of its student."""

import itertools
import json
import shutil
import signal
import subprocess
from pathlib import Path

import federations
import jiwer
import numpy as np
import pytest
import tomli_w
from commands import command, until
from lhotse import CutSet
from typer.testing import CliRunner

from fedspeech import evaluation, features
from fedspeech.cli import app
from fedspeech.device.transcribe import open_recognizer
from fedspeech.models import description
from fedspeech.tensors import distance, read, sha256, size

MODELS = {
    "teacher": {"name": "rnnt-tiny-deep"},
    "student": {"name": "rnnt-tiny-flat"},
    "modules": {},
}
ROWS = ["teacher", "student", "kd", "lcmr", "together"]
CELLS = 2 * len(ROWS)


@pytest.fixture(scope="module")
def file(tables, tmp_path_factory) -> Path:
    ways = {"lcmr": {}, "together": {"strategy": 1, "schedule": "linear"}}
    table = tables(name="small", seeds=[0, 1], rows=ROWS, replacing=ways, **MODELS)
    path = tmp_path_factory.mktemp("experiment") / "small.toml"
    path.write_text(tomli_w.dumps(table))
    return path


@pytest.fixture(scope="module")
def whole(file, environment, tmp_path_factory) -> Path:
    """The run that nothing happened to, with two workers."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run(
        command("distill", file, out), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "minus student" in done.stdout and f"trainings: {CELLS} in" in done.stderr
    return out


def test_the_folder_has_what_a_run_leaves_behind(whole):
    names = {path.name for path in whole.iterdir()}
    assert {"config.toml", "environment.json", "results.json", "timing.json", "report.html"} < names
    found = json.loads((whole / "results.json").read_text())
    assert (found["kind"], found["seeds"], found["speakers"]) == ("distillation", [0, 1], 1)
    assert [row["row"] for row in found["table"]] == ROWS
    teacher, student, *_ = (row["parameters"] for row in found["table"])
    assert 0.4 < student / teacher < 0.65
    ways = {row["row"]: row["replacing"] for row in found["table"]}
    assert ways["kd"] is None and ways["lcmr"]["schedule"] == "logarithmic"
    assert (ways["together"]["strategy"], ways["together"]["rate"]) == (1, 0.5)
    for row in found["table"]:
        assert len(row["seeds"]) == 2 and len(row["losses"]) == 3
        others = {"student": set(), "kd": {"student"}}
        assert set(row["minus"]) == others.get(row["row"], {"student", "kd"})
    assert not list(whole.rglob("*.checkpoint"))


def test_rates_are_those_of_the_models_that_it_wrote(whole, task, settings):
    """Judged again, by jiwer's counts of what each model hears."""
    found = {row["row"]: row for row in json.loads((whole / "results.json").read_text())["table"]}
    speech = task(settings(**MODELS))
    for name in ROWS:
        rates = []
        for seed in (0, 1):
            path = whole / "models" / f"seed-{seed}.{name}.safetensors"
            module = description.read(path.with_suffix(".json")).module(read(path))
            (counts,) = speech.errors(module).values()
            rates.append(evaluation.pooled_rate([counts.errors], [counts.words]))
        assert found[name]["seeds"] == pytest.approx(rates, abs=1e-3)
        assert found[name]["mean"] == pytest.approx(sum(rates) / 2, abs=1e-3)


def test_the_student_is_a_generation_0(whole, tones):
    """It transcribes."""
    path = whole / "models" / "generic.safetensors"
    assert sha256(read(path)) == sha256(read(path.with_name("seed-0.lcmr.safetensors")))
    (first, *_) = sorted((tones / "audio").glob("*.wav"))
    assert isinstance(open_recognizer(path).transcribe(first), str)


def test_the_student_is_personalized_and_updated_like_any_model(
    whole, tones, environment, tmp_path, monkeypatch
):
    """Of two speakers the mean of all others is the other's own model, judged here again."""
    monkeypatch.setenv("FEDSPEECH_CACHE", environment["FEDSPEECH_CACHE"])
    path = whole / "models" / "generic.safetensors"
    about = description.read(path.with_suffix(".json"))
    asked = federations.settings(
        tones,
        partition={"generic": 2, "train": {"field": "round", "values": [1]}},
        model={"name": "rnnt-tiny-flat"},
        features=about.features.model_dump(),
        generic={"model": str(path)},
        personal={"epochs": 30, "batch_size": 3, "learning_rate": 5e-3},
        federation={"bases": ["mean"], "alphas": [0.0, 1.0]},
    )
    run = federations.simulate(asked, tmp_path / "run")
    assert sha256(read(run / "models" / "generic.safetensors")) == sha256(read(path))
    found, models = federations.results(run), sorted((run / "models" / "personal").iterdir())
    rates = []
    for model, other in itertools.permutations(models, 2):
        cuts = CutSet.from_jsonl(run / "devices" / model.stem / "test.jsonl")
        heard = features.prepare(list(cuts), about.features, (), tmp_path / "features")
        told = evaluation.transcribe(about.module(read(other)), heard, about.features, about.units)
        rates.append(100 * jiwer.wer([utterance.text for utterance in heard], told))
    assert len(rates) == 2 and found["table"][0]["mean"] == pytest.approx(np.mean(rates))
    assert found["personal"]["mean"] < found["table"][0]["mean"] < found["generic"]["mean"]
    update, updated = tmp_path / "update.diff", tmp_path / "updated.safetensors"
    make = ["diff", "make", str(path), str(models[0]), "--budget", "10x", "--out", str(update)]
    apply = ["diff", "apply", str(path), str(update), "--out", str(updated)]
    for arguments in (make, apply):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    assert update.stat().st_size <= size(read(path)) / 10
    personal = read(models[0])
    assert distance(read(updated), personal) < 0.8 * distance(read(path), personal)


def test_killed_and_resumed_with_one_worker_it_is_the_same_to_the_byte(
    whole, file, environment, tmp_path
):
    out = tmp_path / "run"
    with subprocess.Popen(
        command("run", file, out), env=environment, stderr=subprocess.DEVNULL
    ) as run:
        # In the middle of a training.
        until(lambda: list(out.glob("cells/*.json")) and list(out.glob("cells/*.checkpoint")))
        run.send_signal(signal.SIGKILL)
    finished = list(out.glob("cells/*.json"))
    assert 1 <= len(finished) < CELLS and not (out / "results.json").exists()
    before = {path: path.stat().st_mtime_ns for path in finished}
    again = command("distill", file, out, "--resume", "--set", "engine.workers=1")
    done = subprocess.run(again, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written  # not trained again
    for path in (whole / "models").rglob("*.*"):
        assert (out / path.relative_to(whole)).read_bytes() == path.read_bytes()


def test_all_seeds_have_the_teacher_that_the_run_began_with(
    whole, file, environment, tmp_path, monkeypatch
):
    """Whatever becomes of the file that it was given."""
    monkeypatch.setenv("FEDSPEECH_CACHE", environment["FEDSPEECH_CACHE"])
    first, other = (whole / "models" / f"seed-{seed}.teacher.safetensors" for seed in (0, 1))
    mine = tmp_path / "mine.safetensors"
    for suffix in (".safetensors", ".json"):
        shutil.copy(first.with_suffix(suffix), mine.with_suffix(suffix))
    given = [f"--set=teacher.file={mine}", "--set=rows=['teacher', 'lcmr']"]
    run = ["distill", str(file), "--out", str(tmp_path / "run"), *given]
    assert CliRunner().invoke(app, [*run, "--set=training.epochs=1"]).exit_code == 0
    models = tmp_path / "run" / "models"
    # As if it had been killed between the seeds.
    for lost in ("teacher", "lcmr"):
        (models / f"seed-1.{lost}.safetensors").unlink()
    shutil.copy(other, mine)
    mine.with_suffix(".json").unlink()
    again = CliRunner().invoke(app, [*run, "--set=training.epochs=1", "--resume"])
    assert again.exit_code == 0, again.output
    for seed in (0, 1):
        taken = read(models / f"seed-{seed}.teacher.safetensors")
        assert sha256(taken) == sha256(read(first)) != sha256(read(other))
    # Nor may it become another one in the run's folder.
    own = models / "teacher.safetensors"
    for lose in (lambda: shutil.copy(other, own), own.unlink):
        lose()
        refused = CliRunner().invoke(app, [*run, "--set=training.epochs=1", "--resume"])
        assert f"{own}: missing or damaged, and what is finished" in str(refused.exception)


def test_by_other_rows_another_student_is_generation_0_or_none_and_it_is_said(
    whole, file, environment, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("FEDSPEECH_CACHE", environment["FEDSPEECH_CACHE"])
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    path = out / "models" / "generic.safetensors"

    def go_on(*rows: str) -> None:
        again = ["distill", str(file), "--out", str(out), "--resume", f"--set=rows={list(rows)}"]
        done = CliRunner().invoke(app, again)
        assert done.exit_code == 0, done.output

    with caplog.at_level("WARNING", logger="fedspeech"):
        for _ in range(2):
            go_on("teacher", "student", "kd")
            assert sha256(read(path)) == sha256(read(path.with_name("seed-0.kd.safetensors")))
        go_on("teacher")
    assert not path.exists() and not path.with_suffix(".json").exists()
    assert caplog.messages == [
        f"{path} was the student of lcmr, and is now that of kd",
        f"{path} was the student of kd, and is removed: no student is in rows",
    ]


def test_what_is_no_distillation_is_told(tmp_path):
    path = tmp_path / "other.toml"
    path.write_text('name = "other"\n')
    done = CliRunner().invoke(app, ["distill", str(path)])
    assert f"{path}: kind = personalization, expected distillation" in str(done.exception)


def test_a_second_run_into_the_folder_is_refused(whole, file, environment, monkeypatch):
    monkeypatch.setenv("FEDSPEECH_CACHE", environment["FEDSPEECH_CACHE"])
    done = CliRunner().invoke(app, ["distill", str(file), "--out", str(whole)])
    assert "there is a run already" in str(done.exception)
    other = ["distill", str(file), "--out", str(whole), "--resume", "--set", "kd.alpha=0.5"]
    assert "kd.alpha: 0.001 there, 0.5 here" in str(CliRunner().invoke(app, other).exception)


def test_the_report_of_the_folder_is_shown(whole):
    done = CliRunner().invoke(app, ["report", str(whole)])
    assert done.exit_code == 0, done.output
    assert "together" in done.output and "rnnt-tiny-flat out of rnnt-tiny-deep" in done.output


@pytest.mark.faults
@pytest.mark.parametrize("row", ["lcmr", "teacher"])
def test_a_model_that_is_missing_or_damaged_is_named_and_trained_again(
    whole, file, environment, tmp_path, row
):
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    damaged, lost = (out / "models" / f"seed-{seed}.{row}.safetensors" for seed in (0, 1))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-4] + bytes(4))
    lost.unlink()
    (out / "results.json").unlink()
    again = command("distill", file, out, "--resume")
    done = subprocess.run(again, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in (damaged, lost):
        assert f"{path}: missing or damaged; {path.stem} is trained again" in done.stderr
    for path in (whole / "models").rglob("*.*"):
        assert (out / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert (out / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_where_a_row_diverges_the_others_are_finished_before_it_is_told(
    file, environment, tmp_path
):
    out = tmp_path / "run"
    wrong = ["--set", "kd.alpha=1e38", "--set", "seeds=[0]"]
    run = command("distill", file, out, *wrong)
    done = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "seed-0.kd: training diverged in epoch 1" in done.stderr
    names = {path.name for path in out.glob("cells/*.json")}
    assert names == {f"seed-0.{row}.json" for row in ROWS if row != "kd"}
