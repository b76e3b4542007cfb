import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from fedspeech import config, corpus
from fedspeech.config.corpus import CorpusSettings, SyntheticSettings
from fedspeech.corpus import cuts, voices
from fedspeech.errors import ConfigError, CorpusError

loader = pytest.importorskip("espeakng_loader")

SMALL = {"speakers": 3, "train_utterances": 3, "test_utterances": 2}
REQUEST = {"text": "open the door", "rate": 170, "volume": 25, "pitch": 50, "range": 50}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(path: Path | None = None, **synthetic) -> CorpusSettings:
    small = SyntheticSettings(**{**SMALL, **synthetic})
    return CorpusSettings(recipe="synthetic", path=path and str(path), synthetic=small)


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> dict[str, list[np.ndarray]]:
    """What eight speakers say, by speaker."""
    wanted = settings(
        tmp_path_factory.mktemp("eight") / "corpus", speakers=8, train_utterances=12, words=(3, 4)
    )
    spoken: dict[str, list[np.ndarray]] = {}
    for cut in corpus.load(wanted):
        spoken.setdefault(cuts.speaker_of(cut), []).append(cuts.samples(cut).numpy())
    return spoken


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(tmp_path):
    for name in ("one", "two"):
        corpus.load(settings(tmp_path / name))
    corpus.load(settings(tmp_path / "three", seed=1))
    one, two, three = (files(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two and len(one) == 17
    audio = [name for name in one if name.endswith(".flac")]
    assert len({one[name] for name in audio} | {three[name] for name in audio}) == 30


def test_speech_depends_neither_on_the_clock_nor_on_what_was_said_before():
    heard = []
    for before in ([], ["stop it now"]):
        with closing(voices.Espeak()) as espeak:
            for text in before:
                espeak.say({**REQUEST, "voice": "en+m3", "text": text})
            breathing = [espeak.say({**REQUEST, "voice": name}) for name in ("en+f2", "en-us+Reed")]
            heard.append(np.concatenate(breathing))
        time.sleep(1.1)  # espeak-ng's own seed is the time in seconds
    np.testing.assert_array_equal(*heard)


def test_every_line_says_part_speaker_and_words_of_the_vocabulary(tmp_path):
    folder = tmp_path / "corpus"
    wanted = settings(folder, train_utterances=20, vocabulary=10, words=(1, 6))
    loaded = list(corpus.load(wanted))
    parts = Counter((cuts.speaker_of(c), c.supervisions[0].custom["part"]) for c in loaded)
    speakers = ["syn001", "syn002", "syn003"]
    assert parts == {(s, part): n for s in speakers for part, n in [("train", 20), ("test", 2)]}
    assert [cut.id for cut in loaded[:22:20]] == ["syn001-train-001", "syn001-test-001"]
    phrases = [cuts.text_of(cut).split() for cut in loaded]
    assert {len(phrase) for phrase in phrases} == {1, 2, 3, 4, 5, 6}
    assert {word for phrase in phrases for word in phrase} == {
        *("open", "close", "start", "red", "green", "small"),
        *("window", "lamp", "today", "tomorrow"),
    }
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        entry = json.loads(line)
        info = soundfile.info(folder / entry["audio"])
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert info.frames == entry["num_samples"]


def test_commands_follow_the_grammar():
    actions, qualities, things, times = (set(words) for words in voices.CLASSES)
    random = np.random.default_rng(0)
    wanted = SyntheticSettings(words=(4, 4), vocabulary=64)
    for _ in range(50):
        action, quality, thing, when = voices._phrase(wanted, random).split()
        assert action in actions and quality in qualities and thing in things and when in times
    assert len(actions | qualities | things | times) == 64


def test_no_utterance_is_silent_clipped_or_of_an_odd_length(eight):
    for waves in eight.values():
        for wave in waves:
            level = 20 * np.log10(np.sqrt(np.mean(wave**2)))
            assert -36 < level < -20
            assert np.abs(wave).max() <= 0.9 + 1e-4
            assert 0.8 < len(wave) / 16_000 < 4.0


def test_speakers_are_further_from_each_other_than_from_themselves(eight):
    def spectrum(waves: list[np.ndarray]) -> np.ndarray:
        mel = torchaudio.transforms.MelSpectrogram(16_000, n_fft=512, hop_length=160, n_mels=40)
        frames = torch.cat([mel(torch.from_numpy(wave)).clamp(min=1e-9).log() for wave in waves], 1)
        mean = frames.mean(1).numpy()
        return mean - mean.mean()

    first = np.array([spectrum(waves[:7]) for waves in eight.values()])
    second = np.array([spectrum(waves[7:]) for waves in eight.values()])
    distances = np.linalg.norm(first[:, None] - second[None], axis=2)
    own = np.diag(distances)
    others = distances[~np.eye(8, dtype=bool)]
    assert (distances.argmin(1) == np.arange(8)).all()
    assert np.median(others) > 4 * np.median(own)
    rates = [sum(map(len, waves)) for waves in eight.values()]
    assert max(rates) > 1.15 * min(rates)


def test_words_are_known_from_how_other_speakers_say_them():
    """The nearest of the other speakers' mean templates is that of the word, far above chance."""
    words = [word for some in voices.CLASSES for word in some[:6]]
    mfcc = torchaudio.transforms.MFCC(
        16_000, 20, melkwargs={"n_fft": 512, "hop_length": 160, "n_mels": 40}
    )

    def template(wave: np.ndarray) -> np.ndarray:
        power = np.convolve(wave**2, np.ones(400), "same")
        loud = np.flatnonzero(power > 0.05 * power.max())
        frames = mfcc(torch.tensor(wave[loud[0] : loud[-1]], dtype=torch.float32))[1:14]
        frames = (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)
        return torch.nn.functional.interpolate(frames[None], 40, mode="linear").flatten().numpy()

    said = []
    for voice in voices.draw(SyntheticSettings(speakers=12)):
        random = np.random.default_rng(0)
        with closing(voices.Espeak()) as espeak:
            requests = [voices._request(voice, word, random) for word in words]
            waves = [voices._record(voice, espeak.say(r), random) for r in requests]
        said.append([template(wave) for wave in waves])
    each = np.array(said)
    known = []
    for speaker in range(12):
        mean = np.delete(each, speaker, axis=0).mean(0)
        distances = np.linalg.norm(each[speaker][:, None] - mean[None], axis=2)
        known.append(np.mean(distances.argmin(1) == np.arange(24)))
    assert min(known) > 0.3 and np.mean(known) > 0.8


def test_all_voices_are_distinct_and_there(tmp_path):
    drawn = voices.draw(SyntheticSettings(speakers=440))
    assert len({voice.name for voice in drawn}) == 440
    assert len({voice.name.partition("+")[2] for voice in drawn[:55]}) == 55
    for quality in ("rate", "pitch", "range", "level", "noise", "taps"):
        assert len({getattr(voice, quality) for voice in drawn}) == 440
    data = Path(loader.get_data_path())
    installed = {path.name for path in (data / "voices" / "!v").iterdir()}
    assert set(voices.VARIANTS) <= installed
    languages = {path.name.lower() for path in (data / "lang" / "gmw").iterdir()}
    assert set(voices.ACCENTS) <= languages
    with pytest.raises(CorpusError, match=r"speakers: 441, but there are 440 distinct voices"):
        corpus.load(settings(tmp_path / "corpus", speakers=441))
    assert not (tmp_path / "corpus").exists()


def test_no_voice_clips_inside_espeak():
    random = np.random.default_rng(0)
    for voice in voices.draw(SyntheticSettings(speakers=55)):
        with closing(voices.Espeak()) as espeak:
            wave = espeak.say(voices._request(voice, "take the last engine outside", random))
        assert 0.02 < np.abs(wave).max() < 0.9


def test_level_noise_and_channel_of_a_speaker():
    voice = voices.Voice("s", "en", 170, 50, 50, level=-26.0, noise=-20.0, taps=(1.0, -0.5, 0.25))
    speech = np.sin(2 * np.pi * 1_000 * np.arange(32_000) / 16_000)
    wave = voices._record(voice, speech, np.random.default_rng(0))
    assert 20 * np.log10(np.sqrt(np.mean(wave**2))) == pytest.approx(-26, abs=1e-6)
    between = np.flatnonzero(np.abs(wave) > 0.5 * np.abs(wave).max())
    pause, spoken = wave[: between[0] - 200], wave[between[0] + 200 : between[-1] - 200]
    turn = np.exp(-2j * np.pi * 1_000 / 16_000)
    gain_of_sine = abs(1 - 0.5 * turn + 0.25 * turn**2)
    gain_of_noise = np.sqrt(1 + 0.5**2 + 0.25**2)
    ratio = 20 * np.log10(np.std(pause) / np.std(spoken))
    assert ratio == pytest.approx(-20 + 20 * np.log10(gain_of_noise / gain_of_sine), abs=1.0)
    loud = voices._record(dataclasses.replace(voice, level=6.0), speech, np.random.default_rng(0))
    assert np.abs(loud).max() == pytest.approx(0.9)


def test_accents_differ():
    with closing(voices.Espeak()) as espeak:
        text = "the large picture here tomorrow after four"
        heard = [espeak.say({**REQUEST, "voice": a, "text": text}) for a in voices.ACCENTS]
    assert len({wave.tobytes() for wave in heard}) == len(voices.ACCENTS)


def test_espeak_refuses_a_voice_it_does_not_have():
    with (
        closing(voices.Espeak()) as espeak,
        pytest.raises(CorpusError, match=r"espeak-ng stopped: espeak-ng cannot speak .*nobody"),
    ):
        espeak.say({**REQUEST, "voice": "nobody"})


def test_the_cache_is_filled_once_under_a_name_of_the_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSPEECH_CACHE", str(tmp_path / "cache"))
    first = list(corpus.load(settings()))
    corpus.load(settings(seed=1))
    folders = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(folders) == 2 and all(path.name.startswith("synthetic-") for path in folders)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    assert [cut.id for cut in corpus.load(settings())] == [cut.id for cut in first]
    monkeypatch.delenv("FEDSPEECH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "cache").rename(tmp_path / "fedspeech")
    assert len(list(corpus.load(settings()))) == len(first)


def test_a_missing_extra_is_one_message_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(CorpusError, match=r"needs espeak-ng: pip install 'fedspeech\[synthetic\]'"):
        corpus.load(settings(tmp_path / "corpus"))
    assert files(tmp_path) == {".corpus.lock": b""}


def test_a_folder_made_with_other_settings_or_by_somebody_else_stays_as_it_is(tmp_path):
    corpus.load(settings(tmp_path / "corpus"))
    before = files(tmp_path)
    with pytest.raises(CorpusError, match=r"recipe\.json: the corpus there was made with other"):
        corpus.load(settings(tmp_path / "corpus", seed=1))
    assert files(tmp_path) == before
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    with pytest.raises(CorpusError, match="expected a synthetic corpus or an empty folder"):
        corpus.load(settings(theirs))
    assert files(theirs) == {"thesis.txt": b"years of work"}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CorpusError, match=r"cannot write the corpus .*file/corpus"):
        corpus.load(settings(tmp_path / "file" / "corpus"))


def test_a_killed_synthesis_leaves_nothing_under_its_name_and_the_next_one_ends_it(tmp_path):
    wanted = settings(tmp_path / "corpus", train_utterances=60)
    script = (
        "from fedspeech import corpus, config; "
        f"corpus.load(config.CorpusSettings.model_validate_json({wanted.model_dump_json()!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".corpus.part/audio/*.flac")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert list(tmp_path.glob(".corpus.part/audio/*.flac"))
    assert not (tmp_path / "corpus").exists()
    assert len(list(corpus.load(wanted))) == 3 * 62
    assert not (tmp_path / ".corpus.part").exists()


def test_two_processes_at_once_give_one_corpus(tmp_path):
    wanted = settings(tmp_path / "corpus", train_utterances=10)
    script = (
        "from fedspeech import corpus, config; "
        f"c = config.CorpusSettings.model_validate_json({wanted.model_dump_json()!r}); "
        "print(len(list(corpus.load(c))))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [child.communicate()[0] for child in children] == ["36\n", "36\n"]
    assert len(files(tmp_path / "corpus")) == 38


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("words = [4, 2]", "words: expected the fewest first, then the most"),
        ("vocabulary = 65", "less than or equal to 64, found 65"),
        ("vocabulary = 7", "greater than or equal to 8, found 7"),
    ],
)
def test_settings_that_no_corpus_can_follow(tmp_path, table, message):
    file = tmp_path / "x.toml"
    file.write_text(f"[corpus.synthetic]\n{table}\n")
    with pytest.raises(ConfigError, match=rf"x\.toml:\d: corpus\.synthetic.*{message}"):
        config.load(file)


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path, child):
    wanted = settings(tmp_path / "corpus").model_dump_json()
    code = (
        "import resource, sys\n"
        "from fedspeech import config, corpus, errors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try:\n"
        "    corpus.load(config.CorpusSettings.model_validate_json(sys.argv[1]))\n"
        "except errors.CorpusError as error:\n"
        "    print(error)\n"
    )
    said = child(code, wanted).stdout
    assert said.startswith(f"cannot write the corpus {tmp_path / 'corpus'}: ")
    assert files(tmp_path) == {".corpus.lock": b""}
