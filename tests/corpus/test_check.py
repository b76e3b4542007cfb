"""What is usable of speech, by listening to it."""

import json

import numpy as np
import pytest
import soundfile

from fedspeech.corpus import one_speaker
from fedspeech.corpus.check import Checked, check
from fedspeech.units import Units

NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, 40 * 16_000).astype(np.float32)


@pytest.fixture
def utterance(tmp_path):
    """Write a recording (float32 samples, or noise of so many seconds) and its transcript."""

    def write(name: str, wave: np.ndarray | float, text: str = "ab", rate: int = 16_000) -> None:
        if not isinstance(wave, np.ndarray):
            wave = np.roll(NOISE, sum(name.encode()))[: round(wave * rate)]
        soundfile.write(tmp_path / name, wave, rate, subtype="FLOAT")
        (tmp_path / name).with_suffix(".txt").write_text(text)

    return write


def checked(folder, units: Units | None = None) -> dict[str, Checked]:
    found = check(one_speaker.entries(folder), units)
    return {one.where.removeprefix(f"{folder}/"): one for one in found}


def test_speech_is_usable_and_counted(tmp_path, utterance):
    utterance("a.wav", 1.25)
    utterance("b.wav", 20.0)
    utterance("c.wav", 2.0, rate=44_100)
    found = checked(tmp_path)
    assert [(one.seconds, one.fault, one.note) for one in found.values()] == [
        (1.25, "", ""),
        (20.0, "", ""),
        (2.0, "", "resampled from 44100 to 16000 Hz"),
    ]


def test_faults_of_the_sound(tmp_path, utterance):
    tone = np.sin(np.arange(16_000, dtype=np.float32) * 0.1)
    utterance("short.wav", 0.09)
    utterance("long.wav", 20.1)
    utterance("silent.wav", 0.0009 * tone)
    utterance("quiet.wav", 0.002 * tone)
    utterance("clipped.wav", np.clip(1.2 * tone, -1, 1))
    utterance("loud.wav", 0.95 * tone)
    utterance("spikes.wav", np.where(np.arange(16_000) % 200 == 0, 1.0, 0.1 * tone))
    utterance("nan.wav", np.where(np.arange(16_000) == 5, np.nan, tone))
    utterance("again.flac.wav", 0.95 * tone)
    found = checked(tmp_path)
    faulty = {name: one.fault for name, one in found.items() if one.cut is None}
    share = 2 * np.arccos(0.98 / 1.2) / np.pi  # of a sine that is above 0.98 / 1.2 of its height
    assert faulty == {
        "short.wav": "too short: 0.09 s, expected at least 0.1 s",
        "long.wav": "too long: 20.1 s, expected at most 20 s",
        "silent.wav": "silent",
        "clipped.wav": f"clipped: {100 * share:.0f} % of its samples are at full scale",
        "nan.wav": "samples that are NaN or infinite",
        "loud.wav": f"the same audio as {tmp_path}/again.flac.wav",
    }
    assert all(one.seconds == 0 for one in found.values() if one.fault)


def test_audio_that_ends_too_early(tmp_path):
    path = tmp_path / "cut.flac"
    soundfile.write(path, NOISE[:32_000], 16_000)
    path.write_bytes(path.read_bytes()[:20_000])
    path.with_suffix(".txt").write_text("ab")
    (one,) = checked(tmp_path).values()
    assert one.cut is None and "unreadable audio" in one.fault
    assert str(path) not in one.fault


def test_with_a_model_transcripts_are_spelled(tmp_path, utterance):
    utterance("a.wav", 1.0, "ba ab")
    utterance("b.wav", 1.1, "abc d")
    assert all(one.cut for one in checked(tmp_path).values())
    found = checked(tmp_path, Units("characters", ["<blank>", "▁", "a", "b"]))
    assert found["a.wav"].cut is not None
    assert found["b.wav"].fault == "not in the vocabulary: c d (in 'abc d')"


def test_everything_that_is_wrong_is_told(tmp_path, utterance):
    utterance("a.wav", 0.01, "x")
    (one,) = checked(tmp_path, Units("characters", ["<blank>", "▁", "a"])).values()
    assert one.fault.split("; ") == [
        "not in the vocabulary: x (in 'x')",
        "too short: 0.01 s, expected at least 0.1 s",
    ]


@pytest.mark.speech
def test_real_speech_is_found_usable(speech, tmp_path):
    """Another corpus's rounds of one speaker, as somebody would lay them out."""
    source = speech / "arabic-speech-commands"
    lines = [json.loads(line) for line in (source / "manifest.jsonl").open()]
    own = [line for line in lines if line["speaker"] == lines[0]["speaker"]]
    for line in own:
        line["audio"] = str((source / line["audio"]).resolve())
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
    found = list(check(one_speaker.entries(tmp_path)))
    usable = [one for one in found if one.cut is not None]
    assert len(found) == len(own) > 100
    assert len(usable) >= 0.95 * len(own), [one.fault for one in found if one.fault]
