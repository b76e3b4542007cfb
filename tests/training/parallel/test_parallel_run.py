"""Whole runs of `fedspeech train` on Ray: what they leave, and what happens when learners die."""

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w
from commands import command, until
from nodes import Node, cluster
from processes import left_running, marked, started_here
from slow import SLOW, slow
from typer.testing import CliRunner

from fedspeech import evaluation, tensors
from fedspeech.cli import app
from fedspeech.config import Config, DataParallelConfig
from fedspeech.corpus import load
from fedspeech.models import description
from fedspeech.tensors import read, state
from fedspeech.training.parallel import launch
from fedspeech.training.parallel.task import Task
from fedspeech.training.spent import FILE
from server import generic

QUICK = {
    "epochs": 3,
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
def start(environment) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a command in a process group of its own, as a terminal does."""

    def begin(line: list[str], where: Path | None = None) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        variables = environment | marked()
        return subprocess.Popen(line, env=variables, cwd=where, process_group=0, **pipes)

    yield begin
    for number in started_here():
        os.kill(number, signal.SIGKILL)


@pytest.fixture(scope="module")
def train(start) -> Callable[..., tuple[Path, subprocess.Popen]]:
    """Begin a run in a folder; where it lies, and its process."""

    def begin(what: dict, folder: Path, where: Path | None = None) -> tuple[Path, subprocess.Popen]:
        file, out = folder / "small.toml", folder / "run"
        file.write_text(tomli_w.dumps(what))
        return out, start(command("train", file, out), where)

    return begin


def finished(run: subprocess.Popen) -> str:
    out, err = run.communicate(timeout=400)
    assert run.returncode == 0, err
    return out + err


def learners() -> list[int]:
    """The processes of the learners of the run that goes on."""
    return sorted(number for number, name in started_here().items() if "ray::Learner" in name)


@pytest.fixture(scope="module")
def undisturbed(train, table, tmp_path_factory) -> Callable[[str], Path]:
    """The run that nothing happens to: two learners, by a method."""

    @functools.cache
    def whole(method: str) -> Path:
        out, run = train(table(method=method), tmp_path_factory.mktemp(method))
        assert "utterances/s" in finished(run)
        return out

    return whole


def assert_same(run: Path, other: Path) -> None:
    """The same results and the same model, to the byte."""
    for name in ("results.json", "models/generic.safetensors", "models/generic.json"):
        assert (run / name).read_bytes() == (other / name).read_bytes()


def test_a_run_leaves_a_generic_model(undisturbed, table, tmp_path):
    out = undisturbed("allreduce")
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
    assert [epoch["utterances"] for epoch in cell["epochs"]] == [36, 36, 36]
    size = tensors.size(dict(about.module(read(path)).named_parameters()))
    assert cell["epochs"][0]["bytes"] > 2 * 5 * size  # two learners, five steps, a model each
    personalization = {
        "model": {"name": "tdnn-tiny"},
        "features": about.features.model_dump(),
        "units": {"kind": "words"},
        "generic": {"model": str(path)},
    }
    generic.check(Config.model_validate(personalization))


def test_a_transducer_is_trained_and_transcribes(train, table, tmp_path):
    what = table({"epochs": 1}, method="ad-psgd") | {
        "model": {"name": "rnnt-tiny"},
        "units": {"kind": "characters"},
    }
    out, run = train(what, tmp_path)
    assert "utterances/s" in finished(run)
    path = out / "models" / "generic.safetensors"
    about = description.read(path.with_suffix(".json"))
    settings = DataParallelConfig.model_validate(what)
    task = Task(settings, load(settings.corpus), tmp_path / "cache")
    assert about.criterion == "rnnt" and tensors.sha256(read(path)) != tensors.sha256(
        state(task.model(0))
    )
    (counts,) = task.errors(about.module(read(path))).values()
    (row,) = json.loads((out / "results.json").read_text())["table"]
    assert row["seeds"] == [pytest.approx(evaluation.pooled_rate([counts.errors], [counts.words]))]


def kept(out: Path, epoch: int, checkpoints: int) -> bool:
    """Whether all who keep something have kept what to go on from after so many epochs."""
    found = list(out.glob(f"cells/*.epoch-{epoch}.checkpoint"))
    return len(found) == checkpoints and len(told(out)) >= epoch


def told(out: Path) -> list[dict]:
    """The epochs that are over, of a training that goes on or is finished."""
    found = list(out.glob("cells/*.epochs.json")) or list(out.glob("cells/*.timing.json"))
    return [epoch for path in found for epoch in json.loads(path.read_text())["epochs"]]


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("method", "checkpoints"),
    [("allreduce", 1), *(pytest.param(way, 2, marks=SLOW) for way in ("ring", "bmuf"))],
)
def test_stopped_and_killed_and_gone_on_with(
    undisturbed, start, train, table, tmp_path, method, checkpoints
):
    """Synchronous methods come to the same bytes; no process is left in between."""
    out, run = train(table(method=method), tmp_path)
    until(lambda: kept(out, 1, checkpoints) or run.poll(), 400)
    os.killpg(run.pid, signal.SIGINT)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 130, said
    assert left_running() == []
    assert "Traceback" not in said
    *_, last, going_on = said.splitlines()
    assert last == "stopped; what is finished is kept. Go on with:"
    first, spent = told(out)[0], json.loads((out / FILE).read_text())
    assert spent["training"] > first["seconds"]

    program, *arguments = shlex.split(going_on)
    line = [str(Path(sys.executable).with_name(program)), *arguments]
    run = start(line)
    until(lambda: kept(out, 2, checkpoints) or run.poll(), 400)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert left_running() == []
    assert not (out / "results.json").exists()

    finished(start(line))
    assert told(out)[0] == first  # with its seconds: it was not learned again
    starts = [epoch["starts"] for epoch in told(out)]
    assert starts[:2] == [True, True]  # and the last one, if it was not over when it was killed
    stages = json.loads((out / "timing.json").read_text())["stages"]
    assert all(stage["seconds"] > spent[stage["stage"]] for stage in stages)
    assert not [*out.glob("cells/*.checkpoint"), *out.glob("cells/*.epochs.json")]
    assert_same(out, undisturbed(method))


@slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("parallel", "checkpoints"),
    [
        ({"method": "ad-psgd"}, 2),
        ({"method": "ad-psgd", "partner": "delay-by-one"}, 2),
        ({"method": "parameter-server"}, 3),
        ({"method": "hierarchical", "learners": 4}, 4),
    ],
    ids=lambda given: str(given),
)
def test_others_that_are_killed_go_on_with_the_epoch_that_was_not_over(
    start, train, table, tmp_path, parallel, checkpoints
):
    """And hear as much in each as if nothing had happened."""
    out, run = train(table(**parallel), tmp_path)
    until(lambda: kept(out, 1, checkpoints) or run.poll(), 400)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    first = told(out)[0]
    assert not (out / "results.json").exists()
    finished(start([*command("train", tmp_path / "small.toml", out), "--resume"]))
    assert told(out)[0] == first
    assert [epoch["utterances"] for epoch in told(out)] == [36, 36, 36]
    assert not [*out.glob("cells/*.checkpoint"), *out.glob("cells/*.epochs.json")]


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "method",
    [
        *("allreduce", "ad-psgd"),
        *(pytest.param(way, marks=SLOW) for way in ("bmuf", "ring", "parameter-server")),
        pytest.param("hierarchical", marks=SLOW),
    ],
)
def test_a_learner_that_is_killed_ends_no_run(train, table, tmp_path, method):
    """Synchronous methods begin again with the last checkpoint, the others go on without it until
    another one is there.
    """
    begins_again = method in ("allreduce", "bmuf")
    epochs = 12 if begins_again else 40  # enough for another learner to be there
    long = {"epochs": epochs, "batch_size": 2}
    count = 4 if method == "hierarchical" else 3
    out, run = train(table(long, method=method, learners=count), tmp_path)
    until(lambda: list(out.glob("cells/*.epochs.json")) or run.poll(), 400)
    assert run.poll() is None, finished(run)
    os.kill(learners()[1], signal.SIGKILL)
    said = finished(run)
    # Nothing tells a server's process from a learner's; learners begin again without it.
    begins_again |= "the parameter server died" in said
    (cell,) = json.loads((out / "timing.json").read_text())["cells"]
    assert (cell["deaths"], cell["restarts"]) == (1, int(begins_again))
    assert begins_again or cell["rejoins"]
    if method in ("allreduce", "ad-psgd"):
        apart = [epoch["consensus"] > 0 for epoch in cell["epochs"][:-1]]
        assert set(apart) == {method == "ad-psgd"}
    assert len(cell["epochs"]) == epochs
    assert "learner " in said and " died" in said and "Learners that died" in said
    utterances = [epoch["utterances"] for epoch in cell["epochs"]]
    if begins_again:
        assert utterances == [36] * epochs
    else:
        # The parts that were underway are lost, and those that were left over at the end.
        assert 36 * epochs - 3 * 2 * count < sum(utterances) <= 36 * epochs
    if method == "hierarchical":
        # The rest of its node cannot go on without it.
        together = re.findall(r"learners ([0-9, ]+) go on together", said)
        assert together[0] in ("0, 1", "2, 3")
        assert set(together) <= {"0, 1", "2, 3", "0, 1, 2, 3"}


@slow
@pytest.mark.timeout(600)
def test_learners_on_two_nodes(undisturbed, train, table, tones, tmp_path):
    """Each node has its own speech and its own features; they have to be the same."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        shutil.copytree(tones, folder / "tones")
    each = [Node(f, {"FEDSPEECH_CACHE": str(f / "cache")} | marked()) for f in folders]
    with cluster(*each) as nodes:
        here = {
            "corpus": {"path": "/proc/self/cwd/tones"},
            "engine": {"ray_address": nodes.address},
        }
        out, run = train(table(method="allreduce") | here, tmp_path, folders[0])
        until(lambda: len(learners()) == 2 or run.poll(), 200)
        assert {Path(f"/proc/{number}/cwd").readlink() for number in learners()} == {*folders}
        finished(run)
        assert_same(out, undisturbed("allreduce"))

        manifest = folders[1] / "tones" / "manifest.jsonl"
        first, *rest = manifest.read_text().splitlines()
        changed = json.loads(first) | {"text": "ba di gu"}
        manifest.write_text("\n".join([json.dumps(changed), *rest]) + "\n")
        (tmp_path / "other").mkdir()
        out, run = train(table(method="allreduce") | here, tmp_path / "other", folders[0])
        said = run.communicate(timeout=200)[1]
        assert run.returncode == 2
        assert re.search(
            r"fedspeech: learner \d on \S+ has another corpus or other settings than the run: "
            "fingerprint [0-9a-f]{12} there, [0-9a-f]{12} here\n$",
            said,
        )
        assert not (out / "results.json").exists()
        assert not any(node.dead_processes() for node in nodes.list_all_nodes())


@pytest.mark.parametrize(("called", "section"), [("train", "parallel"), ("run", "comparison")])
def test_more_learners_than_utterances_are_told_before_anything_starts(
    table, tmp_path, called, section
):
    file = tmp_path / "small.toml"
    what = table({"batch_size": 37}, learners=37 if called == "train" else 2)
    compared = {"ways": ["ring"], "learners": [1, 37], "closer": []}
    file.write_text(tomli_w.dumps(what | {"comparison": compared}))
    done = CliRunner().invoke(app, [called, str(file), "--out", str(tmp_path / "run")])
    told = rf"{re.escape(str(file))}:\d+: {section}\.learners: 37 learners, but 36 utterances to "
    assert re.match(told, str(done.exception))
    assert not (tmp_path / "run").exists()


def test_batches_larger_than_the_corpus_are_told_before_anything_starts(table, tmp_path):
    """Several of them would be one, the whole corpus."""
    file = tmp_path / "small.toml"
    compared = {"ways": ["ring"], "learners": [1, 2], "closer": ["ring"], "larger": [4, 16]}
    file.write_text(tomli_w.dumps(table({"batch_size": 8}) | {"comparison": compared}))
    done = CliRunner().invoke(app, ["run", str(file), "--out", str(tmp_path / "run")])
    told = rf"{re.escape(str(file))}:\d+: comparison\.larger: batches of 128 utterances, but 36 to"
    assert re.match(told, str(done.exception))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("share", "warns"), [(0.5, False), (0.9, True)])
def test_shares_of_more_processors_than_there_are_are_warned_of(monkeypatch, caplog, share, warns):
    monkeypatch.setattr(launch.machine, "cores", lambda: 2)
    parallel = {"learners": 4, "processor": share}
    row = DataParallelConfig.model_validate({"parallel": parallel})
    launch._warn_of_shares({"one": row, "another": row})
    told = "4 learners of 0.9 of a processor each want 3.6, and there are 2: one that waits lends"
    assert [told in each for each in caplog.messages] == [True] * warns


@pytest.mark.parametrize(
    ("called", "engine", "message"),
    [
        (
            "train",
            {"ray_address": "127.0.0.1:1"},
            r"engine\.ray_address = '127\.0\.0\.1:1': cannot join Ray there",
        ),
        (
            "train",
            {"gpus_per_worker": 1000},
            r"parallel\.learners: 2 learners with 1000 GPUs each want 2000 GPUs, Ray has \d+; "
            r"set engine\.simulated_gpus or fewer learners$",
        ),
        ("run", {"gpus_per_worker": 1000}, r"comparison\.learners: 4 learners with 1000 GPUs each"),
    ],
)
def test_a_ray_that_has_no_room_is_told_before_anything_is_computed(
    table, tmp_path, called, engine, message
):
    """Before the speech is read, which is not there; the next try finds an empty folder."""
    what = table() | {"engine": engine, "comparison": {"learners": [1, 4]}}
    file = tmp_path / "small.toml"
    file.write_text(tomli_w.dumps(what | {"corpus": {"path": str(tmp_path / "nowhere")}}))
    done = CliRunner().invoke(app, [called, str(file), "--out", str(tmp_path / "run")])
    assert re.match(message, str(done.exception))
    assert not (tmp_path / "run").exists()


def test_what_is_no_training_is_told(tmp_path):
    path = tmp_path / "other.toml"
    path.write_text('name = "other"\n')
    done = CliRunner().invoke(app, ["train", str(path)])
    assert f"{path}: kind = personalization, expected data-parallel" in str(done.exception)


def test_one_training_is_not_held_to_what_a_comparison_needs(table, tmp_path):
    file = tmp_path / "small.toml"
    what = table(learners=37) | {"comparison": {"learners": [1, 5]}}
    file.write_text(tomli_w.dumps(what))
    out = ["--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, ["train", str(file), *out])
    assert "parallel.learners: 37 learners, but 36 utterances" in str(done.exception)
    done = CliRunner().invoke(app, ["run", str(file), *out])
    assert "comparison.learners: 5 learners cannot share batches" in str(done.exception)
