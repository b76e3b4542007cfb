"""The manifests of real speech beside the checkout, against their own files and READMEs."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedspeech import corpus
from fedspeech.config.corpus import CorpusSettings, PartitionSettings, TrainPart
from fedspeech.corpus import cuts, statistics
from fedspeech.corpus.partition import partition

pytestmark = pytest.mark.speech

SIZES = {
    "an4": (56, 718, 32.2),
    "arabic-speech-commands": (20, 8_000, 133.3),
    "speechocean762-adults": (40, 800, 74.7),
}


def load(folder: Path) -> list:
    return list(corpus.load(CorpusSettings(path=str(folder))))


@pytest.mark.parametrize("name", SIZES)
def test_speakers_utterances_and_minutes_are_those_of_the_readme(speech, name):
    spoken = load(speech / name)
    speakers, utterances, minutes = SIZES[name]
    assert len({cuts.speaker_of(cut) for cut in spoken}) == speakers
    assert len(spoken) == utterances
    assert sum(cut.duration for cut in spoken) / 60 == pytest.approx(minutes, abs=0.05)


@pytest.mark.parametrize("name", SIZES)
def test_samples_are_slices_of_the_decoded_files(speech, name):
    lines = (speech / name / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    for cut, entry in list(zip(load(speech / name), entries, strict=True))[:: len(entries) // 3]:
        decoded, rate = soundfile.read(speech / name / entry["audio"], dtype="float32")
        first = entry.get("start_sample", 0)
        wave = cuts.samples(cut)
        assert rate == 16_000 and cut.id == entry["id"]
        np.testing.assert_array_equal(wave, decoded[first : first + entry["num_samples"]])
        assert float(wave.abs().max()) > 0.01


def test_the_arabic_partition_of_the_experiments(speech):
    corpus_settings = CorpusSettings(path=str(speech / "arabic-speech-commands"))
    settings = PartitionSettings(
        generic=12, train=TrainPart(field="round", values=(1, 2, 3, 4, 5, 6, 7))
    )
    parts = partition(corpus.load(corpus_settings), settings)
    assert [client.speaker for client in parts.clients] == [
        f"asc{number}" for number in (19, 20, 22, 23, 25, 26, 28, 29)
    ]
    rows = {row["part"]: row for row in statistics.table(parts)}
    assert rows["generic"]["utterances"] == 11 * 400 and rows["development"]["speakers"] == 1
    assert rows["train_s"]["seconds_per_speaker"] == {"mean": 280.0, "least": 280.0, "most": 280.0}
    assert rows["test_s"]["words"] == 8 * 120
    assert {cut.supervisions[0].custom["round"] for cut in parts.clients[0].test} == {8, 9, 10}


def test_the_first_half_of_each_an4_client(speech):
    corpus_settings = CorpusSettings(path=str(speech / "an4"))
    settings = PartitionSettings(generic=40, development=4, train=TrainPart(fraction=0.5))
    parts = partition(corpus.load(corpus_settings), settings)
    assert len(parts.clients) == 16 and parts.left_out == {}
    for client in parts.clients:
        assert abs(len(client.train) - len(client.test)) <= 1
        assert max(cut.id for cut in client.train) < min(cut.id for cut in client.test)
