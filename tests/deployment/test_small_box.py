"""A whole box within the memory that docker/README.md says it wants."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import small_box
import soundfile
from fleet import BIN, CONNECTION, NGINX, NO_NGINX, Fleet
from owners import hand, rows, tones
from slow import SLOW
from small_models import untrained

pytestmark = [
    *SLOW,
    pytest.mark.skipif(NGINX is None, reason=NO_NGINX),
    pytest.mark.timeout(2400),
]
GIB = 2**30
SECONDS = 1800.0
LONG, UTTERANCES = 19.5, 15
"""Seconds of an utterance, and how many of them are five minutes."""
GENERIC, FEW = ("t00", "t01", "t02"), ("few", "fewer")
MODEL_BYTES = 56e6
"""Of 14 million parameters, at least."""


def joined(said, folder: Path):
    """Rows of utterances that are as long as they may be, out of short ones of each round."""
    folder.mkdir()
    found, waves, texts = [], [], []
    for number, row in enumerate(said):
        wave, rate = soundfile.read(row["audio"])
        waves.append(wave)
        texts.append(row["text"])
        if sum(map(len, waves)) > LONG * rate or number + 1 == len(said):
            path = folder / f"{row['id']}.wav"
            soundfile.write(path, np.concatenate(waves), rate)
            found.append({**row, "audio": str(path), "text": " ".join(texts)})
            waves, texts = [], []
    return found


@pytest.fixture
def speech(tone_corpus, tmp_path) -> Path:
    """`public`, a box with five minutes in long utterances, and two with a few words."""
    said = rows(tone_corpus(tmp_path / "tones", [*GENERIC, *FEW]))
    hand(tmp_path / "public", [row for row in said if row["speaker"] in GENERIC])
    for few in FEW:
        hand(tmp_path / few, [row for row in said if row["speaker"] == few])
    much = rows(tone_corpus(tmp_path / "much-tones", ["much"], per_round=170, most_words=4))
    by_round = [[row for row in much if row["round"] == number] for number in (1, 2, 3, 4)]
    train = [row for one in by_round[:3] for row in joined(one, tmp_path / one[0]["id"])]
    assert len(train) >= UTTERANCES
    hand(tmp_path / "much", [*train[:UTTERANCES], *by_round[3][:20]])
    return tmp_path


def test_a_box_fine_tunes_the_papers_model_on_five_minutes_within_one_gib(tmp_path, speech):
    """SuperNode, what answers its messages, and the fork that trains; whole models both ways, and
    those of others, which it judges one by one."""
    untrained(tmp_path / "generic.safetensors", "tdnn")
    generic = f"model = {json.dumps(str(tmp_path / 'generic.safetensors'))}"
    fleet = Fleet(tmp_path / "fleet", [*FEW, "much"])
    with small_box.group(GIB) as (place, peak):
        try:
            fleet.start_superlink()
            fleet.start_proxy()
            fleet.register()
            for few in FEW:
                fleet.start_box(few, speech / few, "--name", few)
            join = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', place / "cgroup.procs"]
            fleet.start_box("much", speech / "much", "--name", "much", inside=join)
            text = tones(speech / "public", 3, "kbest", model="tdnn", generic=generic)
            (fleet.folder / "boxes.toml").write_text(text)
            run = [BIN / "fedspeech", "run", "boxes.toml", "--out", "run", "--on", "deployment"]
            fleet.start("operator", [*run, CONNECTION])
            taken = [0]
            fleet.wait("operator", lambda: watch(fleet, place, taken), SECONDS)
            assert fleet.wait_for_end("operator") == 0, fleet.log("operator")[-4000:]
        finally:
            fleet.close()
        print(f"{max(taken) >> 20} MiB of its own, {int(peak.read_text()) >> 20} MiB with files")
    results = json.loads((fleet.folder / "run" / "results.json").read_text())
    assert results["failures"] == [] and results["speakers"] == 3
    with (fleet.folder / "run" / "ledger.csv").open() as file:
        asked = [row for row in csv.DictReader(file) if row["kind"] == "query.word_errors"]
    down = [row for row in asked if row["speaker"] == "much" and row["direction"] == "down"]
    carried = [float(row["bytes"]) for row in down]
    assert len(carried) == len(FEW)
    assert all(MODEL_BYTES < size < 2 * MODEL_BYTES for size in carried)
    assert "killed by signal" not in fleet.log("much")


def watch(fleet, place, taken):
    """Whether the run is over; notes what the group holds until then."""
    taken.append(small_box.anonymous_bytes(place))
    return fleet.status("operator") is not None
