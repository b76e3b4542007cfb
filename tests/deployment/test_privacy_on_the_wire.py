"""Nothing of an owner's speech is in any byte between proxy and SuperLink, nor in any log."""

from pathlib import Path

import pytest
from fleet import BIN, CONNECTION, NGINX, NO_NGINX, Fleet
from needles import SECRET, audio, features, hypotheses, leaks, words
from owners import hand, rows, tones
from recorder import Recorder
from slow import SLOW

pytestmark = [
    pytest.mark.skipif(NGINX is None, reason=NO_NGINX),
    pytest.mark.timeout(600),
    *SLOW,
]
GENERIC = ("t00", "t01", "t02")
OWNERS = {"anna": "Aurelia Vexler", "ben": "Bohumil Quist"}
SECONDS = 300.0


@pytest.fixture(scope="module")
def corpus(tone_corpus, tmp_path_factory) -> Path:
    """Speech of all, with a manifest for each owner: every fifth utterance has the secret word."""
    folder = tone_corpus(tmp_path_factory.mktemp("secret"), [*GENERIC, *OWNERS.values()])
    said = rows(folder)
    hand(folder / "public", [row for row in said if row["speaker"] in GENERIC])
    for box, owner in OWNERS.items():
        own = [row for row in said if row["speaker"] == owner]
        for row in own[::5]:
            row["text"] += f" {SECRET}"
        hand(folder / box, own)
    return folder


@pytest.fixture(scope="module")
def entries(corpus):
    return [row for box in OWNERS for row in rows(corpus / box)]


@pytest.fixture(scope="module")
def recorded(corpus, tmp_path_factory):
    """A whole run, with a recorder on the plain side of the proxy."""
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), list(OWNERS))
    try:
        fleet.start_superlink()
        recorder = Recorder(fleet.keys, fleet.superlink, fleet.folder / "recorded")
        fleet.start_proxy(SUPERLINK=str(recorder.address))
        fleet.register()
        for box in OWNERS:
            fleet.start_box(box, corpus / box)
        experiment = tones(corpus / "public", 2, "kbest", more="[rules.kbest]\nk = 1")
        (fleet.folder / "private.toml").write_text(experiment)
        command = [BIN / "fedspeech", "run", "private.toml", "--out", "run"]
        command += ["--set", "generic.epochs=10"]  # until G hears words at all, right or wrong
        fleet.start("operator", [*command, "--on", "deployment", CONNECTION, "--verbose"])
        status = fleet.wait_for_end("operator", SECONDS)
        assert status == 0, fleet.log("operator")[-4000:]
        yield fleet, recorder
    finally:
        fleet.close()


def needles(fleet, corpus, entries):
    yield audio(corpus, entries)
    yield features(fleet.folder / "devices")
    yield words(entries, OWNERS.values())
    yield hypotheses(fleet.folder / "devices")


def test_the_recorder_hears_what_is_inside_tls(recorded, corpus, entries):
    fleet, recorder = recorded
    up, down = recorder.heard("up"), recorder.heard("down")
    assert b"POST /v1/fleet/push-object" in up and b"HTTP/1.1 200" in down
    assert len(up) > 1_000_000 and len(down) > 1_000_000  # the models are in there
    assert b"train.personalize" in down
    for some in needles(fleet, corpus, entries):
        assert some[3] in leaks(up[:5000] + some[3] + up[5000:], some)
    said = {entry["text"].encode() for entry in entries}
    assert set(hypotheses(fleet.folder / "devices")) - said


def test_no_speech_crosses_the_door(recorded, corpus, entries):
    fleet, recorder = recorded
    everything = recorder.heard("up") + recorder.heard("down")
    for some in needles(fleet, corpus, entries):
        assert len(some) > 5
        assert leaks(everything, some) == []


def test_no_log_and_nothing_that_the_server_writes_names_anybody(recorded, entries):
    fleet, _ = recorded
    found = words(entries, OWNERS.values()) + hypotheses(fleet.folder / "devices")
    kept = [*(fleet.folder / "logs").iterdir(), *(fleet.folder / "run").rglob("*")]
    kept += [fleet.folder / "data" / "superlink.db"]
    files = [path for path in kept if path.is_file()]
    assert {"anna.log", "superlink.log", "proxy.log", "report.html"} <= {p.name for p in files}
    for path in files:
        assert leaks(path.read_bytes(), found) == [], path
