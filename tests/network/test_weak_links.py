"""Boxes behind links that are slow, far away, lossy or cut; and what crosses a link is counted."""

import csv
import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest
from fleet import BIN, CONNECTION, NGINX, NO_NGINX
from links import NOT_POSSIBLE, POSSIBLE, LinkedFleet, Weak
from owners import hand, rows, tones
from small_models import untrained

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(
        os.environ.get("FEDSPEECH_NETWORK") != "1", reason="make test-network runs it, as root"
    ),
    pytest.mark.skipif(not POSSIBLE, reason=NOT_POSSIBLE),
    pytest.mark.skipif(NGINX is None, reason=NO_NGINX),
    pytest.mark.timeout(2400),
]
SECONDS = 1800.0
GENERIC = ("t00", "t01", "t02")
RATES = [256e3, 512e3, 1e6, 2e6, 4e6, 8e6, 10e6, 10e6]
BOXES = [f"box{number}" for number in range(len(RATES))]
CUT, GONE = BOXES[5], BOXES[6]


@pytest.fixture(scope="module")
def speech(tone_corpus, tmp_path_factory) -> Path:
    """A folder for each box, and `public`."""
    folder = tone_corpus(tmp_path_factory.mktemp("speech"), [*GENERIC, *BOXES])
    said = rows(folder)
    for name, speakers in {"public": GENERIC, **{box: (box,) for box in BOXES}}.items():
        hand(folder / name, [row for row in said if row["speaker"] in speakers])
    return folder


@pytest.fixture
def linked(tmp_path, speech):
    """A fleet of some boxes behind their links."""
    opened = []

    def open_(boxes):
        fleet = LinkedFleet(tmp_path / "fleet", boxes)
        opened.append(fleet)
        fleet.start_superlink()
        fleet.start_proxy()
        fleet.register()
        return fleet

    yield open_
    for fleet in opened:
        fleet.close()


def run(fleet, speech, **settings):
    text = tones(speech / "public", len(fleet.boxes), "mean", **settings)
    (fleet.folder / "weak.toml").write_text(text)
    command = [BIN / "fedspeech", "run", "weak.toml", "--out", "run"]
    fleet.start("operator", [*command, "--on", "deployment", CONNECTION])


def finish(fleet):
    status = fleet.wait_for_end("operator", SECONDS)
    assert status == 0, fleet.log("operator")[-4000:]
    return json.loads((fleet.folder / "run" / "results.json").read_text())


def test_a_run_over_weak_links_ends_with_those_that_are_there(linked, speech):
    """300 ms there and back, 5 % loss; one box disappears for two minutes, one for good."""
    fleet = linked(BOXES)
    for box, rate in zip(BOXES, RATES, strict=True):
        fleet.weaken(box, Weak(rate, 0.15, 0.05))
        fleet.start_box(box, speech / box, "--name", box)
    run(fleet, speech, deadline=240.0, more='[budget]\nbase = "10x"\npersonal = "10x"')
    for box in (GONE, CUT):
        fleet.wait("operator", lambda box=box: "train.personalize" in fleet.log(box), SECONDS)
        fleet.cut(box)
    time.sleep(120)
    fleet.mend(CUT)
    found = finish(fleet)
    assert {row["speaker"] for row in found["per_speaker"]} == set(BOXES) - {GONE}
    (failure,) = found["failures"]
    assert failure["speaker"] == GONE and failure["reason"].startswith("no answer within")


def test_the_ledger_is_what_the_link_counts(linked, speech, tmp_path):
    """A model of 57 MB goes down whole and comes up again: within 10 %, TCP and TLS included."""
    generic = tmp_path / "generic.safetensors"
    untrained(generic, "tdnn")
    fleet = linked(BOXES[:2])
    for box in fleet.boxes:
        fleet.start_box(box, speech / box, "--name", box)
    fleet.wait_until_online()
    before = {box: fleet.counted(box) for box in fleet.boxes}
    run(fleet, speech, model="tdnn", generic=f"model = {json.dumps(str(generic))}")
    finish(fleet)
    ledger: Counter[tuple[str, str]] = Counter()
    with (fleet.folder / "run" / "ledger.csv").open() as file:
        for row in csv.DictReader(file):
            ledger[row["speaker"], row["direction"]] += int(row["bytes"])
    for box in fleet.boxes:
        for way, after, first in zip(("down", "up"), fleet.counted(box), before[box], strict=True):
            assert ledger[box, way] >= 50_000_000
            assert after - first == pytest.approx(ledger[box, way], rel=0.1), (box, way)
