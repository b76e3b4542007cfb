import json
import os
import signal
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from fedspeech.config import (
    KINDS,
    Config,
    DataParallelConfig,
    DistillationConfig,
    Experiment,
    NeuralDiffConfig,
    dump,
)
from fedspeech.errors import RunError
from fedspeech.run_folder import RunFolder, cache_folder

SETTINGS = Config()


def changed(**sections: dict) -> Config:
    return Config.model_validate({**SETTINGS.model_dump(by_alias=True), **sections})


@pytest.fixture
def run(tmp_path):
    """A run that has begun: its corpus was read."""
    found = RunFolder(tmp_path / "runs" / "mine")
    found.open(SETTINGS, resume=False)
    found.write_environment(SETTINGS.seed, "abc")
    yield found
    found.close()


def reopened(run: RunFolder, settings: Experiment, resume: bool) -> RunFolder:
    run.close()
    other = RunFolder(run.path)
    other.open(settings, resume)
    return other


@pytest.mark.parametrize(("grid", "mode"), [("deployment", 0o700), ("ray", 0o755)])
def test_what_came_from_boxes_nobody_else_may_look_into(tmp_path, grid, mode):
    usual = os.umask(0o022)
    try:
        run = RunFolder(tmp_path / "runs" / "boxes")
        run.open(changed(engine={"grid": grid, "superlink": "home"}), resume=False)
    finally:
        os.umask(usual)
    assert run.path.stat().st_mode & 0o777 == mode
    run.close()


def test_the_settings_in_force_are_written_whole(run):
    assert run.config.read_text(encoding="utf-8") == dump(SETTINGS)


def test_a_run_is_not_overwritten(run):
    run.close()
    for _ in range(2):  # having said so once does not let the next one in
        with pytest.raises(RunError, match=r"mine: there is a run already; go on .*--resume"):
            RunFolder(run.path).open(SETTINGS, resume=False)
    again = reopened(run, SETTINGS, resume=True)
    again.close()


def test_resuming_with_other_settings_names_each_of_them(run):
    other = changed(seed=3, federation={"alphas": [0.0, 0.5]})
    with pytest.raises(RunError) as caught:
        reopened(run, other, resume=True)
    first, *rest = str(caught.value).splitlines()
    assert first.endswith("that run had other settings; it cannot be resumed with these:")
    grid = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert rest == [
        f"  federation.alphas: {grid} there, [0.0, 0.5] here",
        "  seed: 0 there, 3 here",
    ]
    assert run.config.read_text(encoding="utf-8") == dump(SETTINGS)


def test_a_setting_that_only_one_of_them_has_is_named(run):
    with pytest.raises(RunError, match=r"  corpus.path: None there, '/data' here"):
        reopened(run, changed(corpus={"path": "/data"}), resume=True)


def test_where_clients_run_may_change(run):
    other = changed(name="other", engine={"grid": "in-process", "workers": 7, "retries": 0})
    again = reopened(run, other, resume=True)
    again.close()
    assert tomllib.loads(run.config.read_text(encoding="utf-8"))["engine"]["workers"] == 7


def test_how_long_learners_may_take_to_meet_may_change(tmp_path):
    """Those who did not are told to have longer."""
    table = {"kind": "data-parallel", "comparison": None}
    run = RunFolder(tmp_path / "mine")
    run.open(DataParallelConfig.model_validate(table), resume=False)
    run.write_environment(0, "abc")
    again = DataParallelConfig.model_validate(table | {"parallel": {"form_seconds": 600}})
    reopened(run, again, resume=True).close()
    other = DataParallelConfig.model_validate(table | {"parallel": {"learners": 3}})
    with pytest.raises(RunError, match=r"  parallel\.learners: 2 there, 3 here"):
        reopened(run, other, resume=True)


def test_what_is_simulated_of_a_comparison_may_change(tmp_path):
    """Nothing is trained or measured by it."""
    compared = lambda **of: DataParallelConfig.model_validate(  # noqa: E731
        {"kind": "data-parallel", "comparison": of}
    )
    run = RunFolder(tmp_path / "mine")
    run.open(compared(), resume=False)
    run.write_environment(0, "abc")
    slow = {"bandwidth": 1e8, "latency": 1e-3}
    simulated = {"learners": [1, 512], "network": slow, "node": slow}
    reopened(run, compared(simulated=simulated), resume=True).close()
    with pytest.raises(RunError, match=r"  comparison\.straggler: 10\.0 there, 3\.0 here$"):
        reopened(run, compared(straggler=3.0), resume=True)


def test_how_many_threads_compute_a_model_may_not_change(run):
    other = changed(engine={"cpus_per_worker": 2})
    with pytest.raises(RunError, match=r"  engine.cpus_per_worker: 1 there, 2 here"):
        reopened(run, other, resume=True)


BOXES = {"grid": "deployment", "superlink": "boxes"}


@pytest.mark.parametrize(
    ("began", "goes_on", "said"),
    [
        ({}, BOXES, "that run is simulated, it cannot be resumed on boxes"),
        (BOXES, {"grid": "in-process"}, "that run is on boxes, it cannot be resumed simulated"),
    ],
)
def test_speakers_of_a_corpus_do_not_become_owners_of_boxes(run, began, goes_on, said):
    run.close()
    there = RunFolder(run.path.with_name("other"))
    there.open(changed(engine=began), resume=False)
    there.write_environment(SETTINGS.seed, "abc")
    before = there.config.read_text(encoding="utf-8")
    with pytest.raises(RunError, match=rf"other: {said}; go on with it as it began"):
        reopened(there, changed(engine=goes_on), resume=True)
    assert there.config.read_text(encoding="utf-8") == before
    reopened(there, changed(engine=began), resume=True).close()


def test_boxes_may_be_reached_by_another_connection(run):
    run.close()
    there = RunFolder(run.path.with_name("other"))
    there.open(changed(engine=BOXES), resume=False)
    there.write_environment(SETTINGS.seed, "abc")
    reopened(there, changed(engine={**BOXES, "superlink": "moved"}), resume=True).close()


RAY = {"grid": "ray", "gpus_per_worker": 0.0}


@pytest.mark.parametrize(
    ("gpu", "engine", "told"),
    [
        (True, {"gpus_per_worker": 0.5}, ["  engine.gpus_per_worker: 0.0 there, 0.5 here"]),
        (False, {"gpus_per_worker": 0.5}, ["  engine.gpus_per_worker: 0.0 there, 0.5 here"]),
        (True, {"grid": "in-process"}, ["  engine.grid: 'ray' there, 'in-process' here"]),
        (False, {"grid": "in-process"}, []),
        (False, {"gpus_per_worker": 0.5, "simulated_gpus": 1}, []),
    ],
)
def test_from_a_processor_to_a_gpu_the_run_may_not_move(run, monkeypatch, gpu, engine, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    other = changed(engine={**RAY, **engine})
    if not told:
        reopened(run, other, resume=True).close()
        return
    with pytest.raises(RunError) as caught:
        reopened(run, other, resume=True)
    assert str(caught.value).splitlines()[1:] == told


def machine(monkeypatch, gpu: bool, bf16: bool) -> None:
    """From now on this one has a GPU or none, and computes in bfloat16 or does not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)


def begun(folder: Path, settings: Experiment) -> RunFolder:
    run = RunFolder(folder / "trainings")
    run.open(settings, resume=False)
    run.write_environment(0, "abc")
    return run


@pytest.mark.parametrize(
    "settings",
    [
        DistillationConfig(),
        NeuralDiffConfig.model_validate({"recognition": {}}),
        changed(engine={"grid": "in-process"}),
    ],
    ids=lambda settings: settings.kind,
)
@pytest.mark.parametrize(
    ("began", "goes_on", "told"),
    [
        ((False, False), (True, False), "on cpu in fp32, here it would on cuda in fp32"),
        ((True, True), (False, True), "on cuda in bf16, here it would on cpu in bf16"),
        ((False, True), (False, False), "on cpu in bf16, here it would on cpu in fp32"),
    ],
)
def test_a_training_goes_on_where_it_computes_alike(
    tmp_path, monkeypatch, settings, began, goes_on, told
):
    machine(monkeypatch, *began)
    run = begun(tmp_path, settings)
    before = run.environment.read_bytes()
    machine(monkeypatch, *goes_on)
    with pytest.raises(RunError, match=f"trainings: that run computes {told}; go on with it on a"):
        reopened(run, settings, resume=True)
    assert run.environment.read_bytes() == before
    machine(monkeypatch, *began)
    reopened(run, settings, resume=True).close()


def test_a_run_that_goes_on_with_other_versions_keeps_both_and_says_so(tmp_path, caplog):
    def earlier(torch: str) -> list[dict]:
        there = json.loads(run.environment.read_text(encoding="utf-8"))
        there["versions"]["torch"] = torch
        run.environment.write_text(json.dumps(there), encoding="utf-8")
        again = reopened(run, SETTINGS, resume=True)
        again.write_environment(0, "abc")
        again.close()
        return json.loads(run.environment.read_text(encoding="utf-8")).get("earlier", [])

    run, now = begun(tmp_path, SETTINGS), version("torch")
    assert earlier(now) == [] and not caplog.messages
    assert [one["versions"]["torch"] for one in earlier("2.0.1")] == ["2.0.1"]
    assert f"began with torch 2.0.1, goes on with torch {now}: what comes now may" in caplog.text
    assert [one["versions"]["torch"] for one in earlier("2.0.2")] == ["2.0.1", "2.0.2"]
    assert len(earlier(now)) == 2  # those of before stay


def test_what_a_machine_could_compute_in_is_nothing_to_settings_that_say_it(tmp_path, monkeypatch):
    machine(monkeypatch, gpu=False, bf16=True)
    settings = DistillationConfig.model_validate({"training": {"precision": "fp32"}})
    run = begun(tmp_path, settings)
    machine(monkeypatch, gpu=False, bf16=False)
    reopened(run, settings, resume=True).close()


def test_a_run_that_has_not_kept_how_it_computes_goes_on_and_keeps_it(tmp_path, monkeypatch):
    machine(monkeypatch, gpu=False, bf16=False)
    run = begun(tmp_path, DistillationConfig())
    there = json.loads(run.environment.read_text(encoding="utf-8"))
    del there["machine"]["computes"]
    run.environment.write_text(json.dumps(there), encoding="utf-8")
    machine(monkeypatch, gpu=True, bf16=False)
    again = reopened(run, DistillationConfig(), resume=True)
    again.write_environment(0, "abc")
    machine(monkeypatch, gpu=False, bf16=False)
    with pytest.raises(RunError, match="on cuda in fp32, here it would on cpu in fp32"):
        reopened(again, DistillationConfig(), resume=True)


def test_beside_rays_workers_it_is_g_alone_that_is_trained_here(tmp_path, monkeypatch):
    machine(monkeypatch, gpu=False, bf16=False)
    run = begun(tmp_path, SETTINGS)
    machine(monkeypatch, gpu=True, bf16=False)
    reopened(run, SETTINGS, resume=True).close()
    run.checkpoint.write_bytes(b"G as far as it is")
    with pytest.raises(RunError, match="here it would on cuda in fp32"):
        reopened(run, SETTINGS, resume=True)


@pytest.mark.parametrize(
    ("engine", "began", "goes_on"),
    [
        ({"gpus_per_worker": 0.0}, (True, True), (True, False)),
        ({"gpus_per_worker": 0.5, "simulated_gpus": 1}, (False, True), (False, False)),
        ({"gpus_per_worker": 0.5}, (True, True), (True, False)),
    ],
)
@pytest.mark.parametrize("kind", ["personalization", "data-parallel"])
def test_rays_workers_go_on_in_the_precision_that_they_began_with(
    tmp_path, monkeypatch, kind, engine, began, goes_on
):
    settings = KINDS[kind].model_validate({"kind": kind, "engine": engine})
    machine(monkeypatch, *began)
    run = begun(tmp_path, settings)
    machine(monkeypatch, *goes_on)
    where = "cuda" if began[0] and engine["gpus_per_worker"] else "cpu"
    told = f"workers of that run compute on {where} in bf16, here they would on {where} in fp32"
    with pytest.raises(RunError, match=told):
        reopened(run, settings, resume=True)


def test_machines_of_a_cluster_are_not_in_sight(tmp_path, monkeypatch):
    settings = DataParallelConfig.model_validate({"engine": {"ray_address": "there:6379"}})
    machine(monkeypatch, gpu=False, bf16=True)
    run = begun(tmp_path, settings)
    machine(monkeypatch, gpu=False, bf16=False)
    reopened(run, settings, resume=True).close()


def test_another_share_of_a_gpu_is_free(run):
    run.close()
    for share in (0.5, 0.25):
        on_gpu = changed(name="other", engine={"gpus_per_worker": share, "cohort": 4})
        again = RunFolder(run.path.with_name("gpu"))
        again.open(on_gpu, resume=True)
        again.write_environment(0, "abc")
        assert again.cohort() == 4
        again.close()


def test_who_has_not_begun_has_no_cohorts(run):
    assert RunFolder(run.path / "nowhere").cohort() is None
    run.config.write_text("seed = ")
    assert run.cohort() is None


@pytest.mark.parametrize("text", ["seed = ", "\x00"])
def test_damaged_settings_are_told(run, text):
    run.config.write_text(text)
    with pytest.raises(RunError, match=r"config.toml"):
        reopened(run, SETTINGS, resume=True)


OPEN = """
import sys
from pathlib import Path
from fedspeech.config import Config
from fedspeech.errors import RunError
from fedspeech.run_folder import RunFolder
try:
    RunFolder(Path(sys.argv[1])).open(Config(), resume=True)
    print("open")
except RunError as error:
    print(error)
"""


def test_only_one_process_writes_there_and_a_dead_one_does_not_count(run, child):
    before = run.config.read_text(encoding="utf-8")
    assert child(OPEN, run.path).stdout == f"{run.path}: in use by another process\n"
    assert run.config.read_text(encoding="utf-8") == before
    run.close()
    for _ in range(2):  # each ends without closing
        assert child(OPEN, run.path).stdout == "open\n"


KILLED = """
import os, signal, sys
from pathlib import Path
from fedspeech.tensors import write_whole

def save(part):
    part.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

write_whole(Path(sys.argv[1]), save)
"""


def test_what_a_killed_process_was_writing_is_gone_when_the_run_goes_on(run, child):
    ended = child(KILLED, run.models / "personal" / "s1.safetensors")
    (left,) = run.models.rglob("*.*")
    assert ended.returncode == -signal.SIGKILL and left.read_bytes() == b"half"
    reopened(run, SETTINGS, resume=True)
    assert list(run.models.rglob("*.*")) == [] and run.config.exists()


def test_one_process_may_take_its_folder_twice(run):
    RunFolder(run.path).open(SETTINGS, resume=False)


def test_where_nothing_can_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/run: cannot write there: "):
        RunFolder(tmp_path / "file" / "run").open(SETTINGS, resume=False)


def test_json_is_written_in_its_order_and_as_it_is_spelled(run):
    run.write_json("results.json", {"b": 1, "a": ["ع"]})
    text = run.results.read_text(encoding="utf-8")
    assert json.loads(text) == {"b": 1, "a": ["ع"]}
    assert text.index('"b"') < text.index('"a"') and "ع" in text and text.endswith("\n")


def test_the_environment_tells_what_else_the_figures_depend_on(run):
    found = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))
    assert found["versions"]["torch"] == version("torch")
    assert (found["seed"], found["corpus"]) == (0, "abc")
    assert set(found) == {"versions", "seed", "git", "machine", "corpus", "command"}


@pytest.mark.parametrize(
    ("set_to", "wanted"),
    [
        ({"FEDSPEECH_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/fedspeech"),
        ({"HOME": "/c"}, "/c/.cache/fedspeech"),
    ],
)
def test_the_cache_lies_where_the_user_says(monkeypatch, set_to, wanted):
    for name in ("FEDSPEECH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(wanted)
