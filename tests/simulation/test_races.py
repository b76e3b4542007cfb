"""Races between candidates on Ray: the same peers with any number of workers, killed or not."""

import pytest
from faulty_client import APP, met, plan
from federations import GENERIC_SPEAKERS, Around, assert_same, results, settings, simulate
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


class Stop(Exception):
    pass


class Stopped(Around):
    """Stops the run when all candidates have come and the first race is to end."""

    def sent(self, message):
        race = protocol.text(message.content).get("race", {})
        if race.get("ends"):
            raise Stop


@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_candidates_that_were_lost_are_sent_once_more(crowd, straight, tmp_path, damage, caplog):
    """Their file is one for all devices that hold them."""
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        simulate(racing(crowd), folder, around=Stopped)
    held = sorted(folder.glob("devices/*/models/candidates/*.safetensors"))
    path = held[0]
    holding = [other for other in held if other.name == path.name]
    assert len(holding) > 1
    content = path.read_bytes()
    if damage == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.unlink()
    simulate(racing(crowd), folder)
    lost = holding if damage == "changed" else [path]
    assert {line for line in caplog.messages if "missing or damaged" in line} == {
        f"{other}: missing or damaged; speaker {other.parents[2].name} is sent its candidates once "
        "more"
        for other in lost
    }
    assert_same(folder, straight)
