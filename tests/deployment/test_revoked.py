"""A key that is revoked in the middle of a run, by the command that an operator has for it."""

import json

import pytest
from fleet import BIN, CONNECTION, NGINX, NO_NGINX, opened
from owners import hand, rows, tones
from slow import SLOW

from fedspeech.corpus.partition import pseudonym

pytestmark = [
    pytest.mark.skipif(NGINX is None, reason=NO_NGINX),
    pytest.mark.timeout(600),
    *SLOW,
]
OWNERS = {"anna": "t03", "ben": "t04", "carla": "t05"}
SECONDS = 300.0


@pytest.fixture
def fleet(tmp_path):
    yield from opened(tmp_path / "fleet", list(OWNERS))


def test_nobody_waits_for_a_box_whose_key_was_revoked(fleet, tone_corpus, tmp_path):
    """The deadline is an hour away."""
    corpus = tone_corpus(tmp_path / "tones", 6)
    said = rows(corpus)
    hand(corpus / "public", [row for row in said if row["speaker"] < "t03"])
    for box, owner in OWNERS.items():
        speech = hand(corpus / box, [row for row in said if row["speaker"] == owner])
        fleet.start_box(box, speech, "--name", pseudonym(0, owner))
    (fleet.folder / "tones.toml").write_text(tones(corpus / "public", 3, "mean"))
    command = [BIN / "fedspeech", "run", "tones.toml", "--out", "run"]
    command += ["--set", "personal.epochs=40"]
    fleet.start("operator", [*command, "--on", "deployment", CONNECTION])
    fleet.wait("ben", lambda: "train.personalize, round 1" in fleet.log("ben"), SECONDS)
    fleet.revoke("ben")
    assert fleet.wait_for_end("operator", SECONDS) == 0, fleet.log("operator")[-4000:]
    found = json.loads((fleet.folder / "run" / "results.json").read_text())
    (failure,) = found["failures"]
    assert failure["speaker"] == pseudonym(0, "t04")
    assert failure["reason"] == "its key was revoked"
    assert found["speakers"] == 2
