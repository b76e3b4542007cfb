import logging
from types import SimpleNamespace

import pytest
import torch

import clients.cohort
from fedspeech import accelerator, machine, models, protocol
from fedspeech.config import Config
from fedspeech.config.engine import EngineSettings
from fedspeech.errors import ConfigError, RunError
from fedspeech.simulation import sizing
from fedspeech.simulation.in_process import InProcessGrid


def settings(cohort="auto", model="tdnn-tiny", batch=16, workers=2, **engine) -> Config:
    return Config.model_validate(
        {
            "model": {"name": model},
            "personal": {"batch_size": batch},
            "engine": {"cohort": cohort, "workers": workers, **engine},
        }
    )


def test_what_a_speaker_takes_by_hand():
    # tdnn-tiny: 40 × 19 -> 96, six times 96 × 3 -> 96, 96 -> 500; 4 bytes; 20 s are 667 frames.
    weights = 96 * (760 + 1 + 2) + 6 * 96 * (288 + 1 + 2) + 500 * 97
    read = 760 + 6 * 288 + 96
    written = 7 * 96 + 500
    expected = 4 * (4 * weights + 2000 / 3 * 8 * (read + 4 * written))
    assert sizing.bytes_each(settings(batch=8)) == pytest.approx(expected, rel=1e-6)
    with torch.device("meta"):
        assert models.parameters(models.build("tdnn-tiny", 40, 500)) == weights


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes as many as it holds")
def test_on_a_processor_everybody_is_alone():
    found = sizing.settle(settings())
    assert found.engine.cohort == 1
    assert found.model_copy(update={"engine": settings().engine}) == settings()


def test_a_size_that_fits_stays(monkeypatch):
    each = sizing.bytes_each(settings())
    monkeypatch.setattr(machine, "memory_limit_bytes", lambda: int(2 * 5.6 * each / sizing.SHARE))
    if not torch.cuda.is_available():
        assert sizing.most_together(settings()) == 5
        assert sizing.settle(settings(cohort=5)).engine.cohort == 5
        with pytest.raises(ConfigError, match=r"engine\.cohort: 6 speakers .* 5 would"):
            sizing.settle(settings(cohort=6))
        # One process has it all.
        assert sizing.most_together(settings(grid="in-process")) == 11


def test_where_not_even_one_fits_none_is_named(monkeypatch):
    monkeypatch.setattr(machine, "memory_limit_bytes", lambda: 2**20)
    with pytest.raises(ConfigError, match=r"2 speakers .* not even one would$"):
        sizing.settle(settings(cohort=2, grid="ray"))


def test_one_speaker_is_never_too_many(monkeypatch):
    monkeypatch.setattr(machine, "memory_limit_bytes", lambda: 2**20)
    assert sizing.settle(settings(cohort=1)).engine.cohort == 1


def test_what_a_transducer_takes_by_hand():
    # rnnt-tiny: 3 x 40 -> 96, 2 x 96 -> 96; 24 -> 48; joint 48, 500 units; 20 s are 333 steps.
    encoder = 4 * 96 * (120 + 96 + 2) + 4 * 96 * (192 + 96 + 2)
    prediction = 500 * 24 + 4 * 48 * (24 + 48 + 2)
    weights = encoder + prediction + 48 * (96 + 1) + 48 * 48 + 500 * 49
    # The encoder's second layer sees two steps of the first one at a time.
    kept = 2 * (120 + 12 * 96) + (192 + 12 * 96) + (24 + 12 * 48)
    expected = 4 * (4 * weights + 2000 / 6 * 8 * kept)
    found = sizing.bytes_each(settings(batch=8, model="rnnt-tiny"))
    assert found == pytest.approx(expected, rel=1e-6)
    assert sizing.settle(settings(4, model="rnnt-tiny")).engine.cohort == 4


@pytest.mark.parametrize(
    ("share", "room"),
    # A sixteenth of the GPU is the lattice's.
    [(1.0, 0.6), (0.5, 0.3), (0.15, 0.15 - 1 / 16), (0.07, 0.021), (0.01, 0.003)],
)
def test_a_transducers_lattice_is_left_some_of_a_workers_share(monkeypatch, share, room):
    each = sizing.bytes_each(settings(model="rnnt-tiny"))
    memory = int(1000.5 * each)
    monkeypatch.setattr(accelerator, "MOST_AT_ONCE", 16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = SimpleNamespace(total_memory=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: found)
    asked = settings(model="rnnt-tiny", gpus_per_worker=share)
    assert sizing.most_together(asked) == int(1000.5 * room)


@pytest.fixture
def gpu(monkeypatch) -> None:
    """A GPU that holds 10.5 speakers with the tiny model; this process sees it."""
    memory = int(10.5 * sizing.bytes_each(settings()) / sizing.SHARE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = SimpleNamespace(total_memory=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: found)


@pytest.mark.parametrize(
    ("engine", "size"),
    [
        ({"grid": "ray"}, 1),
        ({"grid": "ray", "gpus_per_worker": 0.5}, 5),
        ({"grid": "ray", "gpus_per_worker": 1.0}, 10),
        ({"grid": "ray", "gpus_per_worker": 2.0}, 10),
        ({"grid": "in-process"}, 10),
    ],
)
def test_the_size_follows_from_the_gpu_that_a_worker_sees(gpu, engine, size, caplog):
    assert sizing.settle(settings(**engine)).engine.cohort == size
    idle = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    said = "engine.gpus_per_worker = 0: workers train on processors, the GPUs here stay idle"
    assert idle == ([said] if size == 1 else [])


def test_where_only_the_cluster_has_gpus_nothing_is_guessed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    engine = {"ray_address": "head:6379", "gpus_per_worker": 1.0}
    assert sizing.settle(settings(**engine)).engine.cohort == 1
    assert sizing.settle(settings(cohort=300, **engine)).engine.cohort == 300


def test_a_run_that_is_resumed_keeps_its_cohorts(gpu):
    """Another share of the GPU would make `auto` another size, and the user never set one."""
    half = settings(grid="ray", gpus_per_worker=0.5)
    assert sizing.settle(half, before=3).engine.cohort == 3
    assert sizing.settle(settings(cohort=4, grid="ray", gpus_per_worker=0.5), 3).engine.cohort == 4
    with pytest.raises(ConfigError, match=r"engine\.cohort: 10 speakers .* 5 would"):
        sizing.settle(half, before=10)


def test_gpus_are_not_simulated_beside_real_ones(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError) as told:
        sizing.settle(settings(grid="ray", gpus_per_worker=0.5, simulated_gpus=2))
    assert str(told.value) == (
        "engine.simulated_gpus: 2 on a machine with 1 real ones, expected 0: models would depend "
        "on which workers get a real one"
    )


@pytest.fixture
def full(gpu, monkeypatch) -> None:
    """Memory runs out: the stack has 6 GiB, other processes 1 GiB, 0.5 GiB of 8 are free."""
    taken = iter([2**40])  # by what was there before the block
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: next(taken))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(taken, 6 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 13 * 2**29)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**29, 2**33))


@pytest.mark.parametrize(
    ("count", "told"),
    [
        # 0.6 of 7 GiB: 22 times 192 MiB; or as many times 3 GiB, or 6 GiB.
        (32, "32 speakers does not fit the memory of a worker (each had taken 192 MiB of 7,168"),
        (2, "2 speakers does not fit the memory of a worker (each had taken 3,072 MiB of 7,168"),
        (1, "1 speakers does not fit the memory of a worker (each had taken 6,144 MiB of 7,168"),
    ],
)
def test_memory_that_runs_out_names_a_size_by_what_was_taken(full, monkeypatch, count, told):
    def runs_out(cohort):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(clients.cohort, "prepare", runs_out)
    engine = EngineSettings(grid="in-process", cohort=32)
    grid = InProcessGrid("clients.app:app", lambda: [{}] * count, engine)
    for node in grid.get_node_ids():
        message = grid.create_message(protocol.content({}), protocol.PERSONALIZE, node, "1")
        (number,) = grid.push_messages([message])
    would = {32: "22 would", 2: "1 would", 1: "not even one would"}[count]
    with pytest.raises(RunError) as caught:
        list(grid.pull_messages([number]))
    assert str(caught.value) == f"a cohort of {told} MiB); {would} (engine.cohort)"


def test_where_a_processors_memory_runs_out_half_the_size_is_named(monkeypatch):
    monkeypatch.setattr(clients.cohort, "prepare", lambda cohort: torch.empty(2**55))
    engine = EngineSettings(grid="in-process", cohort=8)
    grid = InProcessGrid("clients.app:app", lambda: [{}] * 8, engine)
    messages = [
        grid.create_message(protocol.content({}), protocol.PERSONALIZE, node, "1")
        for node in grid.get_node_ids()
    ]
    with pytest.raises(RunError) as caught:
        list(grid.pull_messages(grid.push_messages(messages)))
    assert str(caught.value) == (
        "a cohort of 8 speakers does not fit the memory of a worker; engine.cohort = 4 takes half "
        "of it"
    )


@pytest.mark.parametrize(
    ("model", "cohort", "why"),
    [
        ("tdnn-tiny", 1, "on a processor plain loops are faster than a stack"),
        ("rnnt-tiny", 1, "on a processor plain loops are faster than a stack"),
        ("tdnn-tiny", 2, ""),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes as many as it holds")
def test_why_speakers_are_fine_tuned_one_by_one_is_said(capsys, model, cohort, why):
    sizing.tell(settings(model=model, cohort=cohort))
    said = f"speakers are fine-tuned one by one: {why}\n" if why else ""
    assert capsys.readouterr().err == said
