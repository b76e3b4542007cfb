"""Races between candidates on Ray: the same peers with any number of workers, killed or not."""

import pytest
from faulty_client import APP, met, plan
from federations import GENERIC_SPEAKERS, assert_same, results, settings, simulate
from slow import slow

from fedspeech import protocol
from fedspeech.corpus.partition import pseudonym
from strategies import questions

CLIENTS = 5


@pytest.fixture(scope="module")
def crowd(tone_corpus, tmp_path_factory):
    return tone_corpus(tmp_path_factory.mktemp("crowd"), GENERIC_SPEAKERS + CLIENTS, per_round=4)


@pytest.fixture(scope="module", autouse=True)
def small_messages():
    """So that the candidates of one race come in two messages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "CANDIDATES_PER_MESSAGE", 3)
        yield


def racing(crowd, **engine):
    federation = {"bases": ["quick"], "alphas": [0.0, 1.0], "pair_decodings": 1}
    return settings(crowd, federation=federation, engine=engine, generic={"epochs": 3})


@pytest.fixture(scope="module")
def straight(crowd, tmp_path_factory):
    folder = simulate(racing(crowd), tmp_path_factory.mktemp("straight") / "run")
    assert 0 < results(folder)["decodings"]["quick"]["used"] <= CLIENTS * 4 * 12 / 2
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_on_ray_as_in_one_process(crowd, straight, one_ray, tmp_path, workers):
    plan([])
    there = simulate(racing(crowd, grid="ray", workers=workers), tmp_path / "run")
    assert_same(there, straight)


@slow
@pytest.mark.faults
def test_workers_killed_in_a_race_change_nothing(crowd, straight, one_ray, tmp_path):
    """Whenever it was, in a part of the race or at its end, the next worker goes on from there."""
    dies = {"kind": protocol.WORD_ERRORS, "fault": "die", "times": 2}
    speakers = [pseudonym(0, f"t{number:02}") for number in range(3, 6)]
    plan([{**dies, "speaker": speaker, "seed": 1} for speaker in speakers])
    run = simulate(racing(crowd, grid="ray", workers=2), tmp_path / "run", client=APP)
    assert met() == 2 * len(speakers)
    assert_same(run, straight)


def test_devices_hold_no_candidates_afterwards(straight):
    for device in (straight / "devices").glob("s*"):
        assert not list((device / "models" / "candidates").glob("*"))
    assert len(list((straight / "devices" / "pool").glob("*"))) == 1  # G
