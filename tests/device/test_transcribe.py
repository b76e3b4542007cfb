"""What a device hears with what it holds, without Flower, Ray, training and server."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from bare import command

from fedspeech import cli, corpus, features, seeding
from fedspeech.config.corpus import CorpusSettings, PartitionSettings, TrainPart
from fedspeech.config.model import FeatureSettings, UnitSettings
from fedspeech.corpus.cuts import text_of
from fedspeech.corpus.partition import partition
from fedspeech.decoding import beam
from fedspeech.decoding.streaming import Stream
from fedspeech.device import personal, transcribe, voice
from fedspeech.device.store import BASE, DIFFERENCE, GENERIC, RECOGNIZER, Store
from fedspeech.diff import budget
from fedspeech.errors import CorpusError, ModelError
from fedspeech.evaluation import transcribe as evaluated
from fedspeech.models.description import ModelDescription
from fedspeech.simulation import devices
from fedspeech.tensors import state, write
from fedspeech.units import SPACE, Units, learn


@pytest.fixture(scope="module")
def client(tone_corpus, tmp_path_factory):
    folder = tone_corpus(tmp_path_factory.mktemp("tones"), 3, rounds=2)
    train = TrainPart(field="round", values=(1,))
    settings = PartitionSettings(generic=2, development=1, train=train, least_seconds=0.0)
    return partition(corpus.load(CorpusSettings(path=str(folder))), settings).clients[0]


@pytest.fixture(scope="module")
def about(client) -> ModelDescription:
    units = learn([text_of(cut) for cut in client.train], UnitSettings(kind="characters"))
    return ModelDescription("tdnn-tiny", FeatureSettings(), units)


@pytest.fixture(scope="module")
def model(about):
    def draw(number: int) -> dict[str, torch.Tensor]:
        with seeding.scoped(number, 0, "", "a model"):
            return state(about.empty())

    return draw


@pytest.fixture
def device(client, about, tmp_path) -> Path:
    devices.lay_out([client], tmp_path / "devices", seed=0)
    (folder,) = devices.folders(tmp_path / "devices")
    Store(folder / "models").note(description=about.to_json())
    return folder


@pytest.fixture
def store(device) -> Store:
    return Store(device / "models")


@pytest.fixture
def audio(client) -> list[Path]:
    return [Path(cut.recording.sources[0].source) for cut in client.test]


@pytest.fixture
def expected(client, about, tmp_path):
    """What the evaluation hears in test_s, normalized by train_s, with a model."""

    def hear(model) -> list[str]:
        settings = about.features
        heard = features.prepare(client.test, settings, (), tmp_path / "apart", client.train)
        return evaluated(about.module(model), heard, settings, about.units)

    return hear


def plus(left, right):
    return {name: left[name] + right[name] for name in left}


def heard(device, audio) -> tuple[str, list[str]]:
    recognizer = transcribe.open_recognizer(device)
    return recognizer.about, [recognizer.transcribe(path) for path in audio]


def install(store, device, about, alpha: float) -> None:
    personal.install(store, alpha, voice.of_owner(device, about.features))


def test_it_hears_with_the_mix_what_the_evaluation_hears(
    store, device, audio, about, model, expected
):
    generic, difference, base = model(0), model(1), model(2)
    told = {}
    store.put(GENERIC, generic)
    told["G"] = expected(generic)
    assert heard(device, audio) == ("G", told["G"])
    store.put(DIFFERENCE, difference)
    own = plus(generic, difference)
    told["P_s"] = expected(own)
    assert heard(device, audio) == ("P_s", told["P_s"])
    store.put(BASE, base)  # of a round that goes on
    assert heard(device, audio) == ("P_s", told["P_s"])
    install(store, device, about, 0.7)
    mix = {n: (0.7 * own[n].double() + 0.3 * base[n].double()).float() for n in own}
    told["mix"] = expected(mix)
    assert heard(device, audio) == ("0.7 * P_s + 0.3 * M_s", told["mix"])
    install(store, device, about, 0.0)
    told["M_s"] = expected(base)
    assert heard(device, audio) == ("M_s", told["M_s"])
    install(store, device, about, 1.0)
    assert heard(device, audio) == ("P_s", told["P_s"])
    # These models say different things, or nothing above would have been shown.
    assert len({" / ".join(texts) for texts in told.values()}) == 4
    assert any(text for texts in told.values() for text in texts)


def test_after_a_new_g_it_still_hears_with_p(store, device, audio, model, expected):
    """P_s - G belongs to the G before, which is kept for `rollback`."""
    store.put(GENERIC, model(0))
    store.put(DIFFERENCE, model(1))
    store.update(GENERIC, budget.make(model(0), model(3)).data)
    assert heard(device, audio) == ("P_s", expected(plus(model(0), model(1))))
    store.update(GENERIC, budget.make(store.get(GENERIC), model(4)).data)
    assert heard(device, audio) == ("G", expected(store.get(GENERIC)))


def reordered(about: ModelDescription) -> ModelDescription:
    """Of models of the same size, which spell with the same units in another order."""
    blank, *units = about.units.vocabulary
    return replace(about, units=Units(about.units.kind, [blank, *units[::-1]]))


def test_a_p_of_the_g_before_is_read_as_that_one_was(store, device, audio, about, model):
    """The next G may spell with its units in another order."""
    store.put(GENERIC, model(0), description=about.to_json())
    store.put(DIFFERENCE, model(1))
    before = heard(device, audio)
    other = reordered(about).to_json()
    store.update(GENERIC, budget.make(model(0), model(3)).data, description=other)
    assert store.state()["description"] != about.to_json()
    assert heard(device, audio) == before


def test_what_is_installed_lasts_until_the_next_is(store, device, audio, about, model):
    """Through everything that a run changes before, and back again."""
    store.put(GENERIC, model(0), description=about.to_json())
    store.put_together({DIFFERENCE: model(1), BASE: model(2)})
    install(store, device, about, 0.5)
    before = heard(device, audio)
    other = reordered(about)
    for number in (3, 4):  # two generations: the first G and its P_s are gone
        store.put(GENERIC, model(number), description=other.to_json())
        store.put(DIFFERENCE, model(number))
        store.put(BASE, model(number + 2))
        (device / "train.jsonl").write_bytes((device / "test.jsonl").read_bytes())
        assert heard(device, audio) == before
    install(store, device, other, 0.5)
    assert heard(device, audio) != before
    store.rollback(RECOGNIZER)
    assert heard(device, audio) == before


def test_the_recordings_need_not_be_there_for_ever(store, device, audio, model, monkeypatch):
    store.put(GENERIC, model(0))
    before = heard(device, audio)
    train = (device / "train.jsonl").read_text()
    for path in (device / "features").iterdir():
        path.unlink()
    # The same manifest of recordings that have gone.
    monkeypatch.setattr("fedspeech.device.voice.features.prepare", lambda *_: pytest.fail("read"))
    assert heard(device, audio) == before
    monkeypatch.undo()
    (device / "train.jsonl").write_text(train.replace("t02-", "gone-"))
    with pytest.raises(ModelError, match=r"how its speech sounds cannot be measured: .*gone-"):
        heard(device, audio)
    (device / "train.jsonl").unlink()
    with pytest.raises(ModelError, match=r"train\.jsonl: no speaker's speech here"):
        heard(device, audio)


def test_a_file_of_a_model_normalizes_each_utterance(client, audio, about, model, tmp_path):
    write(tmp_path / "m" / "personal" / "s.safetensors", model(1))
    path = tmp_path / "m" / "personal" / "s.safetensors"
    with pytest.raises(ModelError, match=r"no description of the model; expected .*s\.json"):
        transcribe.open_recognizer(path)
    about.write(tmp_path / "m" / "generic.json")
    settings = FeatureSettings(normalization="utterance")
    own = features.prepare(client.test, settings, (), tmp_path / "apart")
    expected = evaluated(about.module(model(1)), own, settings, about.units)
    assert heard(path, audio)[1] == expected
    ModelDescription("tdnn-tiny", settings, learn(["x y z"], UnitSettings())).write(
        path.with_suffix(".json")
    )
    with pytest.raises(ModelError, match=r"output\.bias has shape"):
        transcribe.open_recognizer(path)


@pytest.mark.parametrize("role", [GENERIC, DIFFERENCE, RECOGNIZER])
def test_what_is_damaged_is_told(store, device, model, role):
    names = {GENERIC: store.put(GENERIC, model(0)), DIFFERENCE: store.put(DIFFERENCE, model(1))}
    names[BASE] = store.put(BASE, model(2))
    personal.install(store, 0.5, None)
    names[RECOGNIZER] = store.hash(RECOGNIZER)
    assert transcribe.open_recognizer(device).about == "0.5 * P_s + 0.5 * M_s"
    if role in (GENERIC, DIFFERENCE):
        store.note(**{RECOGNIZER: None})
    path = store.file(names[role])
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ModelError, match=r"damaged \(its hash differs\)"):
        transcribe.open_recognizer(device)


def test_a_recording_that_is_too_long_is_not_read(store, device, model, tmp_path):
    store.put(GENERIC, model(0))
    soundfile.write(tmp_path / "day.wav", np.zeros(301 * 8000, np.int16), 8000)
    with pytest.raises(CorpusError, match=r"day\.wav: 301 s, expected at most 300 s; cut it"):
        transcribe.open_recognizer(device).transcribe(tmp_path / "day.wav")


def test_a_rate_of_its_own_and_a_fraction_of_a_second(store, device, model, tmp_path):
    store.put(GENERIC, model(0))
    recognizer = transcribe.open_recognizer(device)
    for rate, count in ((44_100, 44_100), (16_000, 1)):
        soundfile.write(tmp_path / "a.wav", np.zeros(count), rate)
        assert isinstance(recognizer.transcribe(tmp_path / "a.wav"), str)


# The command, where Flower, Ray and the training are not installed.


def test_the_command_prints_a_line_for_each_file(store, device, audio, model, expected, tmp_path):
    store.put(GENERIC, model(0))
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"no audio" * 100)
    done = command("transcribe", device, audio[0], noise, tmp_path / "none.wav", *audio[1:])
    texts = expected(model(0))
    lines = [f"{path}\t{text}" for path, text in zip(audio, texts, strict=True)]
    assert done.stdout.splitlines() == lines, done.stderr
    first, second, third = done.stderr.splitlines()
    assert first == "fedspeech: model: G"
    assert second.startswith(f"fedspeech: {noise}: unreadable audio (")
    assert third == f"fedspeech: {tmp_path / 'none.wav'}: no such file"
    assert done.returncode == 1


@pytest.fixture
def fedspeech(monkeypatch, capsys):
    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedspeech", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return run


def test_where_all_is_well_the_status_is_0(fedspeech, store, device, audio, model):
    store.put(GENERIC, model(0))
    assert fedspeech("transcribe", device, audio[0])[0] == 0


def test_of_a_store_that_is_only_read_it_hears_as_well(
    fedspeech, store, device, audio, about, model
):
    """Beside a box that trains, in a container of its own: nothing is written, made or removed."""

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (device, *device.rglob("*"))}

    store.put(GENERIC, model(0))
    store.put(DIFFERENCE, model(1))
    store.put(BASE, model(2))
    install(store, device, about, 0.5)
    before = times()
    assert fedspeech("transcribe", device, *audio)[0] == 0
    assert times() == before


def test_no_model_is_one_message(fedspeech, tmp_path):
    status, out, err = fedspeech("transcribe", tmp_path, "a.wav")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"fedspeech: {tmp_path}: no device's models here")


def test_with_a_device_a_corpus_is_spelled(fedspeech, store, device, audio, model, tmp_path):
    """By `corpus check --model`: the tone words have no x."""
    store.put(GENERIC, model(0))
    for path, text in zip(audio, ("ba di", "x"), strict=False):
        (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / path.name).with_suffix(".txt").write_text(text)
    status, out, _ = fedspeech("corpus", "check", tmp_path, "--model", device)
    assert status == 1 and "not in the vocabulary: x (in 'x')" in out
    assert out.splitlines()[-1].startswith("usable: 1 of 2, ")


# Word by word.

LOG_MEL = FeatureSettings(kind="log-mel", dimension=64)


@pytest.fixture
def streaming(device, store, client) -> Path:
    """A device whose RNN-T says something, though not what was said."""
    units = learn([text_of(cut) for cut in client.train], UnitSettings(kind="characters"))
    about = ModelDescription("rnnt-tiny", LOG_MEL, units)
    with seeding.scoped(3, 0, "", "talkative"), torch.no_grad():
        talkative = about.empty()
        for name, parameter in talkative.named_parameters():
            torch.nn.init.normal_(parameter, std=0.5 if "encoder" in name else 0.7)
        talkative.output.weight.mul_(3)
        talkative.output.bias[0] = 6.0
        talkative.output.bias[units.vocabulary.index(SPACE)] = 3.0
    store.note(description=about.to_json())
    store.put(GENERIC, state(talkative))
    return device


def test_a_stream_has_the_words_of_the_whole(fedspeech, streaming, audio, tmp_path):
    status, out, err = fedspeech("transcribe", "--stream", streaming, *audio, tmp_path / "none.wav")
    assert status == 1 and err.splitlines()[-1].endswith("none.wav: no such file")
    assert out == fedspeech("transcribe", streaming, *audio)[1]
    assert len(out.split()) >= 3 * len(audio)


def test_a_word_comes_as_soon_as_it_is_sure(streaming, audio, monkeypatch):
    accepted = []
    accept = Stream.accept
    monkeypatch.setattr(
        Stream, "accept", lambda self, wave: (accepted.append(len(wave)), accept(self, wave))[1]
    )
    recognizer = transcribe.open_recognizer(streaming)
    for path in audio:
        accepted.clear()
        words = recognizer.stream(path)
        next(words)
        heard, _ = sum(accepted), list(words)
        assert set(accepted[:-1]) == {1600}  # a tenth of a second
        if heard < sum(accepted):
            return
    pytest.fail("every first word came with the last samples")


def test_a_beam_is_followed_where_it_is_asked_for(fedspeech, streaming, store, audio):
    about = ModelDescription.from_json(store.state()["description"])
    recognizer = transcribe.open_recognizer(streaming)
    wanted = []
    for path in audio:
        heard = features.batch([recognizer._heard(path, None)], about.features)
        with torch.inference_mode():
            output, steps = recognizer._module(heard.features, heard.lengths)
        wanted += beam.decode(recognizer._module, output, steps, about.units, 4)
    status, out, _ = fedspeech("transcribe", "--beam", "4", streaming, *audio)
    assert status == 0 and out != fedspeech("transcribe", streaming, *audio)[1]
    assert out == "".join(f"{path}\t{text}\n" for path, text in zip(audio, wanted, strict=True))
    assert fedspeech("transcribe", "--beam", "4", "--stream", streaming, *audio)[1] == out


def test_what_has_no_beam_is_told(fedspeech, device, store, audio, model):
    store.put(GENERIC, model(0))
    status, out, err = fedspeech("transcribe", "--beam", "16", device, audio[0])
    assert (status, out) == (2, "")
    assert err.endswith("expected an RNN-T for a beam of 16, found TDNN\n")


def test_a_model_that_is_on_no_device_streams_too(fedspeech, streaming, store, audio, tmp_path):
    path = tmp_path / "g.safetensors"
    write(path, store.get(GENERIC))
    about = ModelDescription.from_json(store.state()["description"])
    about.write(path.with_suffix(".json"))
    for width in ("1", "4"):
        options = ("transcribe", "--beam", width)
        status, out, err = fedspeech(*options, "--stream", path, *audio)
        assert (status, err) == (0, f"fedspeech: model: {path}\n")
        assert out == fedspeech(*options, path, *audio)[1]
        assert out != fedspeech(*options, streaming, *audio)[1]  # which knows how its owner sounds
    settings = LOG_MEL.model_copy(update={"normalization": "utterance"})
    ModelDescription(about.name, settings, about.units).write(path.with_suffix(".json"))
    status, out, err = fedspeech("transcribe", "--stream", path, audio[0])
    assert (status, out) == (2, "") and "features.normalization = utterance" in err


def test_what_cannot_stream_is_told(fedspeech, streaming, store, audio, about, model):
    store.note(description=about.to_json())
    store.put(GENERIC, model(0))
    status, out, err = fedspeech("transcribe", "--stream", streaming, audio[0])
    assert (status, out) == (2, "")
    assert err.endswith("model tdnn-tiny does not stream, expected an RNN-T\n")
