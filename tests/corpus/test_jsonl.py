import numpy as np
import pytest
import soundfile

from fedspeech import corpus
from fedspeech.config.corpus import CorpusSettings
from fedspeech.corpus import cuts
from fedspeech.errors import CorpusError


def entry(number: int = 1, **changes) -> dict:
    whole = {"id": f"u{number}", "speaker": "anna", "audio": "a.wav", "text": "hello world"}
    return {**whole, **changes}


def load(path, **settings):
    return list(corpus.load(CorpusSettings(path=str(path), **settings)))


def refuse(path, **settings) -> str:
    with pytest.raises(CorpusError) as error:
        load(path, **settings)
    return str(error.value)


def test_an_utterance_keeps_what_its_line_says(sine, manifest):
    sine("a.wav", 440)
    path = manifest(entry(text=" hello \t world ", part="test", round=3), "", entry(2))
    for source in (path, path.parent):
        first, second = load(source)
        assert (first.id, second.id) == ("u1", "u2")
        assert cuts.speaker_of(first) == "anna" and cuts.text_of(first) == "hello world"
        assert first.supervisions[0].custom == {"part": "test", "round": 3}
        assert first.duration == 1.0


def test_a_line_that_is_not_json(sine, manifest):
    sine("a.wav", 440)
    path = manifest(entry(), '{"id": "u2",', "[1, 2]")
    lines = refuse(path).splitlines()
    assert lines[0].startswith(f"{path}:2: not JSON: ")
    assert lines[1] == f"{path}:3: expected a JSON object, found list"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": " "}, "utterance u1: empty transcript"),
        ({"text": 5}, "text: expected a string, found 5"),
        ({"speaker": None}, "speaker: expected a string, found None"),
        ({"audio": "b.wav"}, "b.wav: no such file"),
        ({"start_sample": 15_000, "num_samples": 1_001}, "lies outside its recording of 1 s"),
        (
            {"start_sample": 5},
            "start_sample and num_samples: expected two numbers, found 5 and None",
        ),
        (
            {"start": "0", "duration": 1},
            "start and duration: expected two numbers, found '0' and 1",
        ),
        (
            {"start": float("nan"), "duration": 1},
            "start and duration: expected two numbers, found nan and 1",
        ),
        (
            {"start_sample": 0, "num_samples": float("inf")},
            "start_sample and num_samples: expected two numbers, found 0 and inf",
        ),
        ({"start": 0, "duration": True}, "expected two numbers, found 0 and True"),
        ({"start_sample": 10**400, "num_samples": 1}, "expected two numbers, found 1000"),
        ({"start_sample": 0, "num_samples": 0.3}, "utterance u1: audio of length zero"),
        ({"id": ""}, "id: expected a name, found ''"),
        ({"speaker": " "}, "speaker: expected a name, found ' '"),
        ({"audio": "x" * 5000}, "unreadable audio (File name too long)"),
        ({"audio": "a\0.wav"}, "unreadable audio (embedded null byte)"),
        ({"text": "a \ud800"}, r"expected characters, found '\ud800', half of one"),
        ({"speaker": "\udfff"}, r"expected characters, found '\udfff', half of one"),
        ({"mood": ["\ud800"]}, r"expected characters, found '\ud800', half of one"),
    ],
)
def test_what_is_wrong_with_a_line_is_told_with_its_number(sine, manifest, changes, message):
    sine("a.wav", 440)
    path = manifest(entry(2), entry(**changes))
    found = refuse(path)
    assert found.startswith(f"{path}:2: ") and message in found


def test_a_missing_key_is_named(sine, manifest):
    sine("a.wav", 440)
    broken = entry()
    del broken["speaker"]
    assert refuse(manifest(broken)).endswith(":1: speaker: expected a string, it is missing")


def test_a_duplicate_id_names_both_lines(sine, manifest):
    sine("a.wav", 440)
    path = manifest(entry(), entry(2), entry())
    assert refuse(path) == f"{path}:3: utterance id u1 was on line 1 already"


@pytest.mark.parametrize("line", ['{"id": ' + "1" * 5000 + "}", "[" * 100_000])
def test_a_line_that_pythons_json_does_not_take(sine, manifest, line):
    sine("a.wav", 440)
    path = manifest(entry(), line)
    assert refuse(path).startswith(f"{path}:2: not JSON: ")


def test_two_channels(sine, manifest):
    sine("a.wav", 500, 2_000)
    path = manifest(entry())
    assert "2 channels, expected 1" in refuse(path)
    wave = cuts.samples(load(path, channel=1)[0]).numpy()
    assert np.argmax(np.abs(np.fft.rfft(wave))) == 2_000


def test_utterances_packed_in_one_file_by_samples_and_by_seconds(tmp_path, manifest):
    values = np.arange(24_000, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", values, 16_000)
    parts = load(
        manifest(
            entry(1, start_sample=0, num_samples=8_000, start=9.0, duration=9.0),
            entry(2, start_sample=8_001, num_samples=15_999),
            entry(3, start=0.25, duration=0.5),
            entry(4, duration=1.5),
        )
    )
    for cut, span in zip(
        parts, [(0, 8_000), (8_001, 24_000), (4_000, 12_000), (0, 24_000)], strict=True
    ):
        expected = values[slice(*span)] / np.float32(32_768)
        np.testing.assert_array_equal(cuts.samples(cut).numpy(), expected)


def test_no_manifest(tmp_path):
    assert refuse(tmp_path / "none.jsonl").startswith(f"{tmp_path / 'none.jsonl'}: not a readable")
    with pytest.raises(CorpusError, match=r"corpus\.path: expected the folder or manifest"):
        corpus.load(CorpusSettings())


def test_a_manifest_in_another_encoding(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_bytes('{"id": "ü"}'.encode("latin-1"))
    assert "not a readable manifest" in refuse(path)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(CorpusError, match=r"unknown recipe 'tedlium'.*; the nearest is tedlium3"):
        corpus.load(CorpusSettings(recipe="tedlium"))
