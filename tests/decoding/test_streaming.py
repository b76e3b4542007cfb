import pytest
import torch
from numpy.testing import assert_allclose

from fedspeech import features, seeding
from fedspeech.config.model import FeatureSettings, UnitSettings
from fedspeech.decoding import beam, transducer
from fedspeech.decoding.streaming import FeatureStream, Stream
from fedspeech.errors import ModelError
from fedspeech.features import Normalization, Utterance
from fedspeech.models.description import ModelDescription
from fedspeech.models.rnnt import RNNT
from fedspeech.units import SPACE, Units, learn

LOG_MEL = FeatureSettings(kind="log-mel", dimension=64)
TEXTS = ["ba di gu", "gu ba", "lo mi ke di", "mi mi"] * 4


def noise(samples: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(samples)
    loudness = 0.1 * torch.rand(samples // 2000 + 1, generator=draw).repeat_interleave(2000)
    return loudness[:samples] * torch.randn(samples, generator=draw)


def normalization(settings: FeatureSettings) -> Normalization:
    draw = torch.Generator().manual_seed(1)
    size = settings.dimension
    return Normalization(
        10 + torch.randn(size, generator=draw), 1 + torch.rand(size, generator=draw)
    )


def offline(wave: torch.Tensor, settings: FeatureSettings) -> torch.Tensor:
    """What is seen of a recording that is there as a whole, (1, frames, dimension)."""
    log_mel = {1.0: features.log_mel(wave, settings.dimension)}
    utterance = Utterance("u", "s", "", log_mel, normalization(settings))
    return features.batch([utterance], settings).features


def chunks(wave: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [wave[start : start + size] for start in range(0, len(wave), size)]


@pytest.mark.parametrize("settings", [LOG_MEL, FeatureSettings()], ids=["log-mel", "mfcc"])
@pytest.mark.parametrize("chunk", [1, 159, 160, 333, 4000, 100_000])
def test_features_of_a_stream_are_those_of_the_whole(settings, chunk):
    lengths = (1, 79, 80, 399, 400, 401) if chunk == 1 else (1, 120, 399, 400, 639, 640, 5000, 8081)
    for length in lengths:
        wave = noise(length)
        stream = FeatureStream(settings, normalization(settings))
        parts = [stream.accept(part) for part in chunks(wave, chunk)]
        found = torch.cat([*parts, stream.finish()])
        assert_allclose(found, offline(wave, settings)[0], atol=2e-4, err_msg=str(length))


def test_a_frame_comes_as_soon_as_its_last_sample_is_there():
    stream = FeatureStream(LOG_MEL, normalization(LOG_MEL))
    assert len(stream.accept(noise(399))) == 0
    assert len(stream.accept(noise(1))) == 1  # up to sample 280
    assert len(stream.accept(noise(39))) == 0
    assert len(stream.accept(noise(1))) == 1  # up to sample 440
    assert len(stream.accept(noise(160))) == 1


def test_an_empty_stream_has_neither_features_nor_words():
    assert FeatureStream(LOG_MEL, normalization(LOG_MEL)).finish().shape == (0, 64)
    stream = listener(talkative("words"))
    assert stream.accept(torch.zeros(0)) == [] and stream.finish() == []


def vocabulary(kind: str) -> Units:
    return learn(TEXTS, UnitSettings(kind=kind, size=17))


def talkative(kind: str) -> tuple[RNNT, ModelDescription]:
    """A model that spells something: its weights are larger than those of a fresh one."""
    about = ModelDescription("rnnt-tiny", LOG_MEL, vocabulary(kind))
    with seeding.scoped(6, 0, "", "talkative"), torch.no_grad():
        model = about.empty()
        assert isinstance(model, RNNT)
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.5 if "encoder" in name else 0.7)
        model.output.weight.mul_(3)
        for number, unit in enumerate(about.units.vocabulary):
            model.output.bias[number] = {"<": 6.0, SPACE: 3.0}.get(unit[0], 0.0)
    return model.eval(), about


def listener(pair: tuple[RNNT, ModelDescription], width: int = 1) -> Stream:
    return Stream(*pair, normalization(LOG_MEL), width)


@pytest.mark.parametrize("kind", ["words", "characters", "pieces"])
@pytest.mark.parametrize("width", [1, 4])
def test_words_of_a_stream_are_those_of_the_whole(kind, width):
    model, about = talkative(kind)
    wave = noise(16_017)
    with torch.inference_mode():
        encoded, steps = model(offline(wave, LOG_MEL), torch.tensor([100]))
        if width == 1:
            (wanted,) = transducer.decode(model, encoded, steps, about.units)
        else:
            (wanted,) = beam.decode(model, encoded, steps, about.units, width)
    assert len(wanted.split()) >= 2
    for chunk in (160, 1777, 30_000):
        stream = listener((model, about), width)
        said = [stream.accept(part) for part in chunks(wave, chunk)]
        assert [word for words in (*said, stream.finish()) for word in words] == wanted.split()


def test_words_come_while_somebody_speaks():
    stream = listener(talkative("characters"))
    said = [stream.accept(part) for part in chunks(noise(24_000), 1600)]
    assert sum(map(bool, said)) >= 3
    assert len(stream.finish()) < sum(map(len, said))


@pytest.mark.parametrize("kind", ["words", "characters", "pieces"])
@pytest.mark.parametrize("width", [1, 4])
def test_a_chunk_takes_no_more_work_however_much_was_said_before(kind, width, monkeypatch):
    """Counted: units that are spelled, and those of the longest text that the search compares."""
    spelled, compared = [], [0]
    spell, common = Units.spell, beam._common

    def watched(self, numbers):
        spelled.append(len(numbers))
        return spell(self, numbers)

    def counted(texts):
        compared.append(max(map(len, texts)))
        return common(texts)

    monkeypatch.setattr(Units, "spell", watched)
    monkeypatch.setattr(beam, "_common", counted)
    stream = listener(talkative(kind), width)
    for part in chunks(noise(20 * 16_000), 1600):
        stream.accept(part)
    stream.finish()
    total = len(stream._search.spelled[0])
    assert sum(spelled) == total > 50 and len(spelled) == 201
    print(f"of {total} units at most {max(compared)} were open")
    assert max(compared) < total / 3


def test_a_model_that_has_to_hear_the_end_is_told():
    about = ModelDescription("tdnn-tiny", LOG_MEL, vocabulary("words"))
    with pytest.raises(ModelError, match="model tdnn-tiny does not stream, expected an RNN-T"):
        Stream(about.empty(), about, normalization(LOG_MEL))


def test_features_that_need_the_whole_utterance_are_told():
    settings = FeatureSettings(kind="log-mel", dimension=64, normalization="utterance")
    with pytest.raises(ModelError, match=r"features.normalization = utterance: .* with speaker"):
        FeatureStream(settings, normalization(settings))
