import math
import os

import numpy as np
import pytest
import scipy.fft
import soundfile
import torch
from numpy.testing import assert_allclose

from fedspeech import corpus, features, seeding
from fedspeech.config.corpus import CorpusSettings
from fedspeech.config.model import AugmentationSettings, FeatureSettings
from fedspeech.corpus.cuts import samples
from fedspeech.features import FULL_SCALE, Normalization, Utterance, batch, log_mel, prepare

MFCC, LOG_MEL = FeatureSettings(), FeatureSettings(kind="log-mel")
NOTHING = AugmentationSettings(
    speeds=(), warps=(), volumes=(), noise=(), time_masks=0, frequency_masks=0
)


def kaldi(wave: np.ndarray, bins: int, low: float = 20.0, high: float = 7600.0) -> np.ndarray:
    """Kaldi's fbank as its documentation and feature-window.cc tell it, in float64."""
    length, shift, size, rate = 400, 160, 512, 16_000
    wave = np.asarray(wave, dtype=np.float64) * 32768
    # Frames are centred on multiples of the shift; the ends are mirrored.
    count = (len(wave) + shift // 2) // shift
    index = shift * np.arange(count)[:, None] + shift // 2 - length // 2 + np.arange(length)
    index = np.where(index < 0, -index - 1, index)
    index = np.where(index >= len(wave), 2 * len(wave) - 1 - index, index)
    frames = wave[index]
    frames = frames - frames.mean(1, keepdims=True)
    previous = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames = frames - 0.97 * previous
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))
    spectrum = np.abs(np.fft.rfft(frames * hann**0.85, size)) ** 2

    def mel(hertz):
        return 1127 * np.log(1 + np.asarray(hertz) / 700)

    edges = np.linspace(mel(low), mel(high), bins + 2)
    at = mel(np.arange(size // 2 + 1) * rate / size)
    rising = (at - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - at) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return np.log(np.maximum(spectrum @ triangles.T, np.finfo(np.float32).eps))


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def utterance(frames: int, settings: FeatureSettings = MFCC, seed: int = 0) -> Utterance:
    """Energies of noise, at three speeds, normalized with what they are."""
    energies = {speed: log_mel(noise(round(160 * frames / speed), seed), 40) for speed in (1, 0.9)}
    matrix = features.transform(settings.kind, 40)
    return Utterance(f"u{seed}", "s", "a", energies, features.normalization([energies[1]], matrix))


@pytest.fixture(scope="module")
def cuts(tone_corpus, tmp_path_factory):
    folder = tone_corpus(tmp_path_factory.mktemp("tones"), 2, rounds=1, per_round=3)
    return list(corpus.load(CorpusSettings(path=str(folder))))


# Energies and their transform.


@pytest.mark.parametrize("bins", [23, 40])
@pytest.mark.parametrize("samples", [400, 1000, 16_000, 16_079, 16_080])
def test_log_mel_is_kaldis_formula(samples, bins):
    time = np.arange(samples) / 16_000
    speech = noise(samples).numpy() + 0.3 * np.sin(2 * np.pi * (200 + 1500 * time) * time) + 0.05
    found = log_mel(torch.from_numpy(speech).float(), bins)
    wanted = kaldi(speech.astype(np.float32), bins)
    assert found.shape == wanted.shape == ((samples + 80) // 160, bins)
    assert found.dtype == torch.float32
    assert_allclose(found.numpy(), wanted, rtol=0, atol=2e-3)


def test_silence_lies_on_the_floor():
    assert_allclose(log_mel(torch.zeros(1600), 40).numpy(), np.log(2.0**-23), rtol=1e-6)


@pytest.mark.parametrize("samples", [1, 80, 399])
def test_what_is_shorter_than_a_window_is_padded(samples):
    found = log_mel(noise(samples), 40)
    padded = np.concatenate([noise(samples).numpy(), np.zeros(400 - samples)])
    assert_allclose(found.numpy(), kaldi(padded, 40), rtol=0, atol=2e-3)


@pytest.mark.parametrize("gain", [0.25, 2.0])
def test_a_gain_adds_a_constant(gain):
    plain, changed = log_mel(noise(8000), 40), log_mel(gain * noise(8000), 40)
    assert_allclose((changed - plain).numpy(), 2 * math.log(gain), rtol=0, atol=1e-4)


def test_mfcc_is_the_orthonormal_cosine_transform():
    energies = log_mel(noise(8000), 40)
    wanted = scipy.fft.dct(energies.double().numpy(), type=2, norm="ortho", axis=1)
    found = energies @ features.transform("mfcc", 40)
    assert_allclose(found.numpy(), wanted, rtol=0, atol=2e-4)
    assert torch.equal(features.transform("log-mel", 40), torch.eye(40))


def test_neither_bits_nor_statistics_depend_on_the_number_of_threads(cuts, tmp_path):
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            features._noise.cache_clear()
            long = log_mel(noise(400_000), 40)
            norm = features.normalization([long], features.transform("mfcc", 40))
            prepared = prepare(cuts, MFCC, (0.9, 1.1), tmp_path / str(threads))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
        energies = [u.log_mel[speed] for u in prepared for speed in u.log_mel]
        found.append([features._noise(40), norm.mean, norm.deviation, *energies])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


# Preparing, normalization and the cache.


@pytest.mark.parametrize("settings", [MFCC, LOG_MEL], ids=["mfcc", "log-mel"])
def test_features_of_the_reference_speech_have_mean_0_and_deviation_1(cuts, tmp_path, settings):
    found = prepare(cuts, settings, (), tmp_path)
    for speaker in ("t00", "t01"):
        spoken = batch([u for u in found if u.speaker == speaker], settings)
        frames = torch.cat([x[:n] for x, n in zip(*vars(spoken).values(), strict=True)]).double()
        assert_allclose(frames.mean(0).numpy(), 0, atol=1e-4)
        assert_allclose(frames.std(0, correction=0).numpy(), 1, rtol=1e-4)


def test_each_utterance_can_be_normalized_by_itself(cuts, tmp_path):
    settings = FeatureSettings(normalization="utterance")
    for one in prepare(cuts, settings, (), tmp_path):
        frames = batch([one], settings).features[0].double()
        assert_allclose(frames.mean(0).numpy(), 0, atol=1e-4)
        assert_allclose(frames.std(0, correction=0).numpy(), 1, rtol=1e-4)


def test_test_speech_is_normalized_with_what_is_known_from_the_reference(cuts, tmp_path):
    mine = [cut for cut in cuts if cut.id.startswith("t00")]
    found = prepare(mine[1:], LOG_MEL, (), tmp_path, reference=mine[:1])
    known = kaldi(samples(mine[0]).numpy(), 40)
    for one in found:
        assert_allclose(one.normalization.mean.numpy(), known.mean(0), atol=1e-2)
        assert_allclose(one.normalization.deviation.numpy(), known.std(0), rtol=1e-2)


def test_what_never_varies_is_not_divided_by_nothing():
    norm = features.normalization([torch.full((9, 40), 3.0)], features.transform("log-mel", 40))
    assert norm.mean.tolist() == [3.0] * 40
    assert_allclose(norm.deviation.numpy(), 1e-3, rtol=1e-6)


def test_prepare_tells_each_utterance_at_each_speed(cuts, tmp_path):
    found = prepare(cuts, MFCC, (0.9, 1.1), tmp_path)
    assert [u.id for u in found] == [cut.id for cut in cuts]
    assert [u.text for u in found] == [cut.supervisions[0].text for cut in cuts]
    assert [u.speaker for u in found] == [cut.supervisions[0].speaker for cut in cuts]
    for one, cut in zip(found, cuts, strict=True):
        assert sorted(one.log_mel) == [0.9, 1.0, 1.1]
        for speed, energies in one.log_mel.items():
            assert abs(len(energies) - 100 * cut.duration / speed) <= 1


@pytest.mark.parametrize("speed", [0.9, 1.1, 0.57])
def test_faster_speech_is_shorter_and_higher(speed):
    time = torch.arange(16_000) / 16_000
    wave = features._at_speed(torch.sin(2 * torch.pi * 1000 * time), speed)
    assert abs(len(wave) - 16_000 / speed) <= 1
    spectrum = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs()
    assert spectrum.argmax().item() / len(wave) * 16_000 == pytest.approx(1000 * speed, abs=2)


def same(left: list[Utterance], right: list[Utterance]) -> bool:
    return all(
        one.log_mel.keys() == two.log_mel.keys()
        and all(torch.equal(one.log_mel[speed], two.log_mel[speed]) for speed in one.log_mel)
        and torch.equal(one.normalization.mean, two.normalization.mean)
        and torch.equal(one.normalization.deviation, two.normalization.deviation)
        for one, two in zip(left, right, strict=True)
    )


def test_the_cache_gives_the_bits_that_computing_gives(cuts, tmp_path, monkeypatch):
    first = prepare(cuts, MFCC, (0.9,), tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) == 2
    with monkeypatch.context() as patched:
        patched.setattr(features, "log_mel", None)  # a second computation would fail
        assert same(first, prepare(cuts, MFCC, (0.9,), tmp_path))
        # Energies at one speed are the same whatever other speeds there are.
        plain = prepare(cuts, MFCC, (), tmp_path, reference=cuts)
    assert all(
        torch.equal(p.log_mel[1.0], f.log_mel[1.0]) for p, f in zip(plain, first, strict=True)
    )
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept
    assert same(first, prepare(cuts, MFCC, (0.9,), tmp_path / "other"))


def test_many_utterances_lie_in_several_files(cuts, tmp_path, monkeypatch, capsys):
    """How they come on is told, once."""
    whole = prepare(cuts, MFCC, (0.9,), tmp_path / "whole")
    monkeypatch.setattr(features, "CUTS_PER_FILE", 4)
    assert len(cuts) == 6 and capsys.readouterr().err == ""
    assert same(whole, prepare(cuts, MFCC, (0.9,), tmp_path / "parts"))
    assert len(list((tmp_path / "parts").iterdir())) == 2 * 2
    assert capsys.readouterr().err.startswith("features of 6 utterances: 4 in ")
    assert same(whole, prepare(cuts, MFCC, (0.9,), tmp_path / "parts"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_a_damaged_file_of_the_cache_is_computed_anew(cuts, tmp_path, content):
    first = prepare(cuts, MFCC, (), tmp_path / "whole")
    prepare(cuts, MFCC, (), tmp_path / "damaged")
    (kept,) = (tmp_path / "damaged").iterdir()
    kept.write_bytes(content)
    assert same(first, prepare(cuts, MFCC, (), tmp_path / "damaged"))


def test_the_cache_knows_what_it_depends_on(cuts, tmp_path):
    prepare(cuts, MFCC, (), tmp_path)
    for count, other in enumerate(
        [
            lambda: prepare(cuts[1:], MFCC, (), tmp_path),
            lambda: prepare(cuts, MFCC, (0.9,), tmp_path),
            lambda: prepare(cuts, FeatureSettings(dimension=23), (), tmp_path),
            lambda: prepare([cuts[0].truncate(duration=0.1)], MFCC, (), tmp_path),
            lambda: prepare([cuts[0].truncate(offset=0.05, duration=0.1)], MFCC, (), tmp_path),
        ],
        start=2,
    ):
        other()
        assert len(list(tmp_path.iterdir())) == count
    prepare(cuts, LOG_MEL, (1.0,), tmp_path)  # the same energies
    assert len(list(tmp_path.iterdir())) == count


def test_audio_that_changed_is_computed_anew(tone_corpus, tmp_path):
    folder = tone_corpus(tmp_path / "speech", 1, rounds=1, per_round=2)
    found = list(corpus.load(CorpusSettings(path=str(folder))))
    before = prepare(found, MFCC, (), tmp_path / "cache")
    path = folder / "audio" / f"{found[0].id}.wav"
    wave, rate = soundfile.read(path)
    soundfile.write(path, 0.5 * wave, rate)  # the same size
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    after = prepare(found, MFCC, (), tmp_path / "cache")
    quieter = after[0].log_mel[1.0] - before[0].log_mel[1.0]
    assert quieter.median().item() == pytest.approx(2 * math.log(0.5), abs=0.05)
    assert torch.equal(before[1].log_mel[1.0], after[1].log_mel[1.0])
    assert same(after, prepare(found, MFCC, (), tmp_path / "elsewhere"))


# Batches.


def test_padding_changes_no_utterance_and_is_zero():
    long, short = utterance(130, seed=1), utterance(47, seed=2)
    together = batch([long, short], MFCC)
    assert together.lengths.tolist() == [130, 47]
    assert together.features.shape == (2, 130, 40) and together.features.dtype == torch.float32
    for index, one in enumerate((long, short)):
        alone = batch([one], MFCC)
        assert_allclose(
            together.features[index, : alone.lengths[0]].numpy(),
            alone.features[0].numpy(),
            atol=1e-5,
        )
    assert not together.features[1, 47:].any()


def test_features_are_normalized_energies_transformed():
    one = utterance(60)
    energies = one.log_mel[1].double().numpy()
    cepstra = scipy.fft.dct(energies, type=2, norm="ortho", axis=1)
    wanted = (cepstra - cepstra.mean(0)) / cepstra.std(0)
    assert_allclose(batch([one], MFCC).features[0].numpy(), wanted, atol=2e-4)
    plain = (energies - energies.mean(0)) / energies.std(0)
    assert_allclose(batch([utterance(60, LOG_MEL)], LOG_MEL).features[0].numpy(), plain, atol=2e-4)


def test_no_variation_is_no_variation():
    some = [utterance(60, seed=1), utterance(50, seed=2)]
    assert torch.equal(batch(some, MFCC, NOTHING).features, batch(some, MFCC).features)


def test_speeds_are_drawn_uniformly():
    settings = NOTHING.model_copy(update={"speeds": (0.9, 1.0)})
    one = utterance(60)
    with seeding.scoped(0, 0, "", "speeds"):
        lengths = batch([one] * 1000, MFCC, settings).lengths
    assert set(lengths.tolist()) == {len(one.log_mel[1]), len(one.log_mel[0.9])}
    assert (lengths == 60).double().mean().item() == pytest.approx(0.5, abs=0.05)


def plain(energies: torch.Tensor) -> Utterance:
    """An utterance whose features are its energies."""
    norm = Normalization(torch.zeros(energies.shape[1]), torch.ones(energies.shape[1]))
    return Utterance("u", "s", "a", {1.0: energies}, norm)


def hertz_of(bins: int) -> np.ndarray:
    """Where the filters lie, in Hz."""
    low, high = (1127 * np.log(1 + hertz / 700) for hertz in (20.0, 7600.0))
    return 700 * (np.exp(np.linspace(low, high, bins + 2)[1:-1] / 1127) - 1)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_a_warp_reads_every_filter_at_its_frequency_times_the_factor(factor):
    energies = log_mel(noise(8000), 40)
    settings = NOTHING.model_copy(update={"warps": (factor, factor)})
    found = batch([plain(energies)], LOG_MEL, settings).features[0]

    def mel(hertz: np.ndarray) -> np.ndarray:
        return np.log(1 + hertz / 700)

    centres = hertz_of(40)
    for row, wanted in zip(found.numpy(), energies.double().numpy(), strict=True):
        interpolated = np.interp(mel(centres * factor), mel(centres), wanted)
        assert_allclose(row, interpolated, atol=2e-3)


def test_a_warp_moves_a_tone_by_one_factor_for_all_of_an_utterance():
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 16_000)
    settings = NOTHING.model_copy(update={"warps": (0.8, 1.25)})
    with seeding.scoped(0, 0, "", "warps"):
        fine = FeatureSettings(kind="log-mel", dimension=80)
        found = batch([plain(log_mel(tone, 80))] * 500, fine, settings).features
    peaks = found.argmax(2)[:, 2:-2]  # whole windows
    assert (peaks.amax(1) - peaks.amin(1) <= 1).all()
    tones = hertz_of(80)[peaks[:, 0]]
    # Between filters 5 % apart.
    assert tones.min() == pytest.approx(1000 / 1.25, rel=0.05)
    assert tones.max() == pytest.approx(1000 / 0.8, rel=0.05)
    assert np.mean(1000 / tones) == pytest.approx((0.8 + 1.25) / 2, rel=0.03)


def test_volume_changes_are_gains_drawn_uniformly_in_decibels():
    settings = NOTHING.model_copy(update={"volumes": (0.25, 2.0)})
    one = plain(log_mel(noise(4800), 40))
    with seeding.scoped(0, 0, "", "volumes"):
        found = batch([one] * 1000, LOG_MEL, settings).features
    shift = (found - batch([one], LOG_MEL).features).double()
    assert_allclose(shift.std((1, 2)).numpy(), 0, atol=1e-5)  # one gain for all of an utterance
    gains = (shift.mean((1, 2)) / 2).exp()
    assert 0.25 <= gains.min() < 0.27 and 1.9 < gains.max() <= 2.0
    assert gains.log().mean().item() == pytest.approx(math.log(0.25 * 2) / 2, abs=0.05)


@pytest.mark.parametrize("decibels", [0.0, 10.0, 20.0])
def test_noise_has_the_asked_ratio_on_average(decibels):
    settings = NOTHING.model_copy(update={"noise": (decibels, decibels), "noise_probability": 1.0})
    loud, quiet = log_mel(noise(16_000, 1), 40), log_mel(noise(12_000, 2), 40) - 25
    some = [plain(loud), plain(quiet)] * 200
    with seeding.scoped(0, 0, "", "noise"):
        noisy = batch(some, LOG_MEL, settings)
    clean = batch(some, LOG_MEL)
    present = (torch.arange(100) < clean.lengths[:, None])[..., None]
    speech = (clean.features.double().exp() * present).sum((1, 2))
    added = ((noisy.features.double().exp() - clean.features.double().exp()) * present).sum((1, 2))
    ratios = 10 * torch.log10(speech / added)
    for which in (ratios[::2], ratios[1::2]):
        # The spectrum's tilt is drawn and moves single ratios by some 5 dB at most.
        assert which.mean().item() == pytest.approx(decibels, abs=0.7)
        assert which.max() - which.min() < 14
    assert (noisy.features >= clean.features - 1e-4).all()  # energy is added, none is taken away


def test_noise_comes_with_its_probability():
    settings = NOTHING.model_copy(update={"noise": (0.0, 0.0), "noise_probability": 0.25})
    some = [utterance(40)] * 1000
    with seeding.scoped(0, 0, "", "noise"):
        changed = (batch(some, MFCC, settings).features != batch(some, MFCC).features).any(2).any(1)
    assert changed.double().mean().item() == pytest.approx(0.25, abs=0.05)


def runs(flags: np.ndarray) -> list[int]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


@pytest.mark.parametrize("axis", ["time", "frequency"])
def test_masks_set_the_mean_and_stay_within_their_limits(axis):
    counts = {
        "time_masks": 0,
        "time_mask_frames": 12,
        "frequency_masks": 0,
        "frequency_mask_bins": 5,
    }
    settings = NOTHING.model_copy(update={**counts, f"{axis}_masks": 2})
    widest = counts["time_mask_frames" if axis == "time" else "frequency_mask_bins"]
    with seeding.scoped(0, 0, "", "masks"):
        found = batch([utterance(80, LOG_MEL)] * 300, LOG_MEL, settings).features
    plain = batch([utterance(80, LOG_MEL)], LOG_MEL).features
    masked = (found == 0) & (plain != 0)
    assert torch.equal(found[~masked], plain.expand_as(found)[~masked])
    along = masked.all(2 if axis == "time" else 1)
    assert torch.equal(along.unsqueeze(2 if axis == "time" else 1).expand_as(masked), masked)
    widths = [runs(row) for row in along.numpy()]
    assert max(len(row) for row in widths) == 2
    # Each is narrower than its limit, and two of them can lie beside each other.
    assert widest <= max(sum(row) for row in widths) <= 2 * (widest - 1)
    assert {sum(row) for row in widths} >= set(range(2, widest))


def test_draws_follow_from_pytorchs_generator():
    some = [utterance(60, seed=1), utterance(50, seed=2)]
    settings = AugmentationSettings(speeds=(1, 0.9))

    def draw(purpose: str) -> torch.Tensor:
        with seeding.scoped(0, 0, "", purpose):
            return batch(some, MFCC, settings).features

    assert torch.equal(draw("one"), draw("one"))
    assert draw("one").shape != draw("two").shape or not torch.equal(draw("one"), draw("two"))


def test_full_scale_is_that_of_16_bits():
    assert FULL_SCALE == 2**15
