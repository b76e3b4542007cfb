"""Nothing of a client's speech leaves it: every byte of a recorded run is read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from federations import LONG, Around, results, settings, simulate
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from needles import SECRET, audio, features, hypotheses, leaks, words

from fedspeech import protocol
from fedspeech.corpus.partition import pseudonym

GENERIC = ("t00", "t01", "t02")
CLIENTS = ("Aurelia Vexler", "Bohumil Quist", "Wendeline Zobrist")


EPOCHS = 10
"""Until G hears words at all, right or wrong."""


class Wiretap(Around):
    """Keeps every message as Flower serializes it; calls `lose` before P_s is asked for."""

    def __init__(self, grid, lose: Callable[[], None] = lambda: None):
        super().__init__(grid)
        self.down, self.up, self.lose = [], [], lose

    def sent(self, message):
        if message.metadata.message_type == protocol.PERSONALIZE:
            self.lose()
        self.down.append(message_to_proto(message).SerializeToString())

    def received(self, reply):
        self.up.append(message_to_proto(reply).SerializeToString())
        return reply


@pytest.fixture(scope="module")
def secret_corpus(tone_corpus, tmp_path_factory) -> Path:
    """Clients with names of their own; every fifth utterance says the secret word too."""
    folder = tone_corpus(tmp_path_factory.mktemp("secret"), [*GENERIC, *CLIENTS], per_round=3)
    lines = []
    for number, line in enumerate((folder / "manifest.jsonl").read_text().splitlines()):
        entry = json.loads(line)
        if entry["speaker"] in CLIENTS and number % 5 == 0:
            entry["text"] += f" {SECRET}"
        lines.append(json.dumps(entry) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def entries(secret_corpus) -> list[dict]:
    lines = (secret_corpus / "manifest.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["speaker"] in CLIENTS]


@pytest.fixture(scope="module")
def recorded(secret_corpus, tmp_path_factory) -> tuple[Path, Wiretap]:
    """A run with all that there is: a Flower strategy, two rounds, every message type, and
    personal models that go up as diffs."""
    taps = []

    def tap(grid):
        taps.append(Wiretap(grid))
        return taps[0]

    folder = tmp_path_factory.mktemp("recorded") / "run"
    experiment = settings(
        secret_corpus,
        partition={"generic": GENERIC},
        generic={"epochs": EPOCHS},
        federation=LONG,
        budget={"personal": "2x"},
    )
    simulate(experiment, folder, around=tap)
    return folder, taps[0]


def all_needles(run, corpus, entries):
    return [
        audio(corpus, entries),
        features(run / "devices"),
        words(entries, CLIENTS),
        hypotheses(run / "devices"),
    ]


def test_the_search_would_find_a_leak(recorded, secret_corpus, entries):
    run, tap = recorded
    for needles in all_needles(run, secret_corpus, entries):
        assert len(needles) > 5
        planted = tap.up[5] + needles[3] + tap.up[6]
        assert needles[3] in leaks(planted, needles)
    said = {entry["text"].encode() for entry in entries}
    assert set(hypotheses(run / "devices")) - said, "what was heard wrong is looked for as well"


def test_no_speech_is_in_any_message(recorded, secret_corpus, entries):
    run, tap = recorded
    assert len(tap.up) == len(tap.down) > 8 * len(CLIENTS)
    everything = b"".join([*tap.up, *tap.down])
    assert len(everything) > 10_000_000  # the models are in there
    for needles in all_needles(run, secret_corpus, entries):
        assert leaks(everything, needles) == []


def strings(value) -> set[str]:
    """All keys and strings in what JSON can say."""
    if isinstance(value, dict):
        return set(value).union(*map(strings, value.values()))
    if isinstance(value, list):
        return set().union(*map(strings, value))
    return {value} if isinstance(value, str) else set()


def test_what_devices_answer_is_numbers_about_models_and_errors(recorded):
    """All text that goes up: beside numbers, only hashes, pseudonyms and the name of a part."""
    _, tap = recorded
    said = set()
    for content in tap.up:
        records = message_from_proto(ProtoMessage.FromString(content)).content
        said |= strings(protocol.text(records))
        assert all(set(record) == {"json"} for record in records.config_records.values())
    answers = (*protocol.ANSWERS.values(), protocol.Raced)
    fields = {name for answer in answers for name in answer.model_fields}
    names = {pseudonym(0, name) for name in CLIENTS}
    hashes = {text for text in said if len(text) == 64 and set(text) <= set("0123456789abcdef")}
    assert said - fields - names - hashes == {"train", ""}
    assert fields | names <= said and hashes


def test_what_the_server_writes_names_nobody(recorded, entries):
    """All but the devices' own folders, and but the settings and where they were asked for."""
    run, _ = recorded
    kept = [
        path for path in run.rglob("*") if path.is_file() and run / "devices" not in path.parents
    ]
    names = {path.name for path in kept}
    assert {"results.json", "ledger.csv", "report.html", "journal.sqlite"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    needles = words(entries, CLIENTS) + hypotheses(run / "devices")
    for path in kept:
        assert leaks(path.read_bytes(), needles) == [], path


def test_an_error_on_a_device_stays_there(secret_corpus, entries, tmp_path, capfd):
    """The text of the error names the audio file; the server hears that there was one."""
    lost = next(entry for entry in entries if entry["speaker"] == CLIENTS[1])
    path = secret_corpus / lost["audio"]
    content, taps = path.read_bytes(), []

    def lose() -> None:
        path.unlink(missing_ok=True)

    def tap(grid):
        taps.append(Wiretap(grid, lose))
        return taps[0]

    experiment = settings(
        secret_corpus, partition={"generic": GENERIC}, federation={"bases": ["mean"]}
    )
    try:
        run = simulate(experiment, tmp_path / "run", around=tap)
    finally:
        path.write_bytes(content)
    (failure,) = results(run)["failures"]
    assert failure["speaker"] == pseudonym(0, CLIENTS[1])
    assert failure["reason"] in {
        f"{kind} on the device; its errors.log says more"
        for kind in ("CorpusError", "FileNotFoundError")
    }
    own = (run / "devices" / failure["speaker"] / "errors.log").read_text()
    assert own.startswith("train.personalize: Traceback") and path.name in own
    assert leaks(b"".join(taps[0].up), words(entries, CLIENTS)) == []
    said = capfd.readouterr()
    for written in (said.out, said.err, (run / "report.html").read_text()):
        assert leaks(written.encode(), words(entries, CLIENTS)) == []
