"""A box's container is healthy when the box is in, by the command that its compose file has."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from fleet import DOCKER, SUPERLINK, Fleet
from owners import hand, rows

CHECK = yaml.safe_load((DOCKER / "compose.client.yaml").read_text(encoding="utf-8"))
LATE = 180.0


@pytest.fixture(scope="module")
def speech(tone_corpus, tmp_path_factory) -> Path:
    corpus = tone_corpus(tmp_path_factory.mktemp("tones"), 1, per_round=1)
    return hand(corpus / "own", rows(corpus))


def healthy(fleet: Fleet, box: str) -> bool:
    kind, command = CHECK["services"]["box"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL" and "/var/lib/fedspeech" in command
    here = command.replace("$$", "$").replace(
        "/var/lib/fedspeech", str(fleet.folder / "devices" / box)
    )
    return subprocess.run(["sh", "-c", here], stderr=subprocess.DEVNULL).returncode == 0


def test_only_a_box_that_is_in_is_healthy(fleet, speech):
    contact = fleet.folder / "devices" / "carla" / "contact"
    contact.parent.mkdir(parents=True)
    contact.touch()
    fleet.start_box("mallory", speech)
    fleet.wait("mallory", lambda: "the SuperNode has ended" in fleet.log("mallory"))
    assert not healthy(fleet, "mallory"), "nobody has registered it"
    fleet.start_box("carla", speech)
    fleet.wait("carla", lambda: not healthy(fleet, "carla"))
    fleet.wait("carla", lambda: healthy(fleet, "carla"))
    assert fleet.nodes()["carla"][1] == "online"
    fleet.kill(SUPERLINK)
    os.utime(contact, (contact.stat().st_mtime - LATE,) * 2)
    assert not healthy(fleet, "carla"), "its server is away"
    fleet.start_superlink()
    fleet.wait("carla", lambda: healthy(fleet, "carla"))
    for box in ("carla", "mallory"):
        fleet.stop(box)
