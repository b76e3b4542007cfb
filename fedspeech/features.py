"""What the acoustic model sees: log-mel filter energies or MFCC, normalized, and their variation.

The log-mel energies of every utterance are computed once, at every speed, and cached; everything
else is cheap and happens on whole batches: a gain adds a constant to log energies, noise adds in
the energy domain, masking sets the mean, and the discrete cosine transform makes MFCC of what is
left. Energies follow Kaldi (torchaudio.compliance.kaldi): 25 ms windows every 10 ms.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torchaudio
from lhotse import MonoCut

from fedspeech import tensors
from fedspeech.config.model import AugmentationSettings, FeatureSettings
from fedspeech.corpus.cuts import SAMPLE_RATE, samples, speaker_of, text_of
from fedspeech.errors import ModelError
from fedspeech.progress import stage

FRAMES_PER_SECOND = 100
WINDOW, SHIFT = SAMPLE_RATE * 25 // 1000, SAMPLE_RATE // FRAMES_PER_SECOND
"""Samples that a frame is computed from, and samples from one frame to the next."""
FULL_SCALE = 32768.0
"""Kaldi's sample range; keeps the energies of quiet speech above the floor of its logarithm."""
LOW_HERTZ, HIGH_HERTZ = 20.0, SAMPLE_RATE / 2 - 400
"""The range of the mel filters."""
LEAST_DEVIATION = 1e-3
CUTS_PER_FILE = 1000
"""Of the cache; the largest corpora would not fit into memory while they are computed."""
NOISE_SECONDS = 20
NOISE_TILT = (-3.0, 1.5)
"""How much louder, in log energy, noise may be at each end of the spectrum than in the middle: the
noise of rooms falls towards high frequencies more often than it rises."""


@dataclass(frozen=True)
class Normalization:
    """Mean of the log-mel energies and deviation of the features, float32 of shape (dimension,)."""

    mean: torch.Tensor
    deviation: torch.Tensor


@dataclass(frozen=True)
class Utterance:
    """One utterance: its text, and its log-mel energies, float32 (frames, dimension), by speed."""

    id: str
    speaker: str
    text: str
    log_mel: dict[float, torch.Tensor]
    normalization: Normalization


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are taken in one order, so that the bits do not depend on how many threads there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def log_mel(wave: torch.Tensor, dimension: int) -> torch.Tensor:
    """Log-mel energies, float32 (frames, dimension), of float32 samples (n,) at 16 kHz."""
    wave = torch.nn.functional.pad(wave, (0, max(0, WINDOW - len(wave))))
    return _energies(wave, dimension, snip_edges=False)


def log_mel_of_windows(samples: torch.Tensor, dimension: int) -> torch.Tensor:
    """The same of float32 samples (n,) that begin with the first window and end with the last one.

    `log_mel` mirrors a recording at its ends, so that its first window lies around its first step.
    """
    return _energies(samples, dimension, snip_edges=True)


def _energies(wave: torch.Tensor, dimension: int, snip_edges: bool) -> torch.Tensor:
    energies: torch.Tensor = torchaudio.compliance.kaldi.fbank(
        wave[None] * FULL_SCALE,
        num_mel_bins=dimension,
        sample_frequency=SAMPLE_RATE,
        low_freq=LOW_HERTZ,
        high_freq=HIGH_HERTZ,
        snip_edges=snip_edges,
        dither=0.0,
    )
    return energies


def transform(kind: str, dimension: int) -> torch.Tensor:
    """The matrix (dimension, dimension) that makes features of log-mel energies: DCT-II, or 1."""
    if kind == "log-mel":
        return torch.eye(dimension)
    cosine: torch.Tensor = torchaudio.functional.create_dct(dimension, dimension, norm="ortho")
    return cosine


def prepare(
    cuts: Sequence[MonoCut],
    settings: FeatureSettings,
    speeds: Sequence[float],
    cache_folder: Path,
    reference: Sequence[MonoCut] | None = None,
) -> list[Utterance]:
    """The utterances of the cuts, from the cache where they are there already.

    Mean and deviation come from the cuts of `reference` that the same speaker spoke (by default
    the cuts themselves): a client's test_s is normalized with what is known from its train_s.
    """
    speeds = sorted({1.0, *speeds})
    energies = _cached(cuts, settings.dimension, speeds, cache_folder)
    known = (
        energies
        if reference is None
        else _cached(reference, settings.dimension, [1.0], cache_folder)
    )
    norms = _normalizations(cuts if reference is None else reference, known, settings)
    each = settings.normalization == "utterance"
    matrix = transform(settings.kind, settings.dimension)
    return [
        Utterance(
            id=cut.id,
            speaker=speaker_of(cut),
            text=text_of(cut),
            log_mel={speed: energies[f"{cut.id}@{speed}"] for speed in speeds},
            normalization=normalization([energies[f"{cut.id}@1.0"]], matrix)
            if each
            else norms[speaker_of(cut)],
        )
        for cut in cuts
    ]


def normalization(log_mels: Sequence[torch.Tensor], matrix: torch.Tensor) -> Normalization:
    """Mean and deviation over all frames of some log-mel energies (frames, dimension)."""
    frames = torch.cat(list(log_mels)).double()
    with one_thread():
        mean = frames.mean(0)
        features = (frames - mean) @ matrix.double()
        deviation = features.square().mean(0).sqrt().clamp_min(LEAST_DEVIATION)
    return Normalization(mean.float(), deviation.float())


def _normalizations(
    cuts: Sequence[MonoCut], energies: tensors.Tensors, settings: FeatureSettings
) -> dict[str, Normalization]:
    matrix = transform(settings.kind, settings.dimension)
    frames: dict[str, list[torch.Tensor]] = {}
    for cut in cuts:
        frames.setdefault(speaker_of(cut), []).append(energies[f"{cut.id}@1.0"])
    return {speaker: normalization(some, matrix) for speaker, some in frames.items()}


def _cached(
    cuts: Sequence[MonoCut], dimension: int, speeds: Sequence[float], folder: Path
) -> tensors.Tensors:
    """Energies by `ID@SPEED`, mapped from files: what is in memory is what is being computed."""
    starts = range(0, len(cuts), CUTS_PER_FILE)
    each = [cuts[start : start + CUTS_PER_FILE] for start in starts]
    parts = [_Part.of(some, dimension, speed, folder) for some in each for speed in speeds]
    missing = [part for part in parts if not part.file.exists()]
    if len(missing) > len(speeds):  # else it is soon done
        with stage(len(missing)) as shown:
            shown.start(f"features of {len(cuts):,} utterances")
            for part in missing:
                part.compute()
                shown.advance("")
    found: tensors.Tensors = {}
    for part in parts:
        found |= part.energies()
    return found


class _Part(NamedTuple):
    """A file of the cache, and what is in it."""

    file: Path
    cuts: Sequence[MonoCut]
    dimension: int
    speed: float

    @classmethod
    def of(cls, cuts: Sequence[MonoCut], dimension: int, speed: float, folder: Path) -> "_Part":
        name = f"{_fingerprint(cuts, dimension, speed)}.safetensors"
        return cls(folder / name, cuts, dimension, speed)

    def energies(self) -> tensors.Tensors:
        if self.file.exists():
            with suppress(ModelError):  # a damaged file is computed anew
                return tensors.read(self.file)
        self.compute()
        return tensors.read(self.file)

    def compute(self) -> None:
        with one_thread():
            waves = ((cut.id, _at_speed(samples(cut), self.speed)) for cut in self.cuts)
            found = {f"{id}@{self.speed}": log_mel(wave, self.dimension) for id, wave in waves}
            tensors.write(self.file, found)


def _at_speed(wave: torch.Tensor, speed: float) -> torch.Tensor:
    if speed == 1.0:
        return wave
    faster: torch.Tensor = torchaudio.functional.speed(wave, SAMPLE_RATE, speed)[0]
    return faster


def _fingerprint(cuts: Sequence[MonoCut], dimension: int, speed: float) -> str:
    audio = {
        cut.recording.id: (stat.st_size, stat.st_mtime_ns)
        for cut in cuts
        for stat in [Path(cut.recording.sources[0].source).stat()]
    }
    spans = [(cut.id, cut.recording.id, cut.start, cut.duration, cut.channel) for cut in cuts]
    name = json.dumps([2, dimension, speed, spans, sorted(audio.items())])
    return hashlib.sha256(name.encode()).hexdigest()


@dataclass(frozen=True)
class Batch:
    """Features float32 (batch, frames, dimension), zero after each utterance's end, and lengths."""

    features: torch.Tensor
    lengths: torch.Tensor

    def to(self, place: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(self.features.to(place), self.lengths.to(place))


def batch(
    utterances: Sequence[Utterance],
    settings: FeatureSettings,
    augmentation: AugmentationSettings | None = None,
) -> Batch:
    """Features of some utterances, varied if asked. Draws come from PyTorch's generator.

    Noise energies are added to speech energies, which is what they do on average (the cross term
    has mean zero).
    """
    chosen = [_choose_speed(utterance, augmentation) for utterance in utterances]
    lengths = torch.tensor([len(log_mel) for log_mel in chosen])
    x = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
    present = (torch.arange(x.shape[1]) < lengths[:, None])[..., None]
    mean = torch.stack([utterance.normalization.mean for utterance in utterances])[:, None]
    deviation = torch.stack([utterance.normalization.deviation for utterance in utterances])
    if augmentation is not None:
        x = _add_noise(_change_volume(_warp(x, augmentation), augmentation), lengths, augmentation)
    x = x - mean
    if augmentation is not None:
        x = _mask(x, augmentation)
    x = x @ transform(settings.kind, settings.dimension) / deviation[:, None]
    return Batch(x * present, lengths)


def _choose_speed(utterance: Utterance, augmentation: AugmentationSettings | None) -> torch.Tensor:
    if augmentation is None or not augmentation.speeds:
        return utterance.log_mel[1.0]
    which = int(torch.randint(len(augmentation.speeds), ()))
    return utterance.log_mel[augmentation.speeds[which]]


def _uniform(low: float, high: float, count: int) -> torch.Tensor:
    return (low + (high - low) * torch.rand(count))[:, None, None]


def _warp(x: torch.Tensor, augmentation: AugmentationSettings) -> torch.Tensor:
    """Vocal tract length perturbation (Jaitly & Hinton 2013): each utterance's frequencies times w.

    Energies between two filters are interpolated; beyond the last one they stay what they are.
    """
    if not augmentation.warps:
        return x
    least, most = augmentation.warps
    factors = _uniform(least, most, len(x))[..., 0]
    centres = torch.linspace(_mel(LOW_HERTZ), _mel(HIGH_HERTZ), x.shape[2] + 2)[1:-1]
    hertz = 700 * ((centres / 1127).exp() - 1) * factors
    places = (1127 * (1 + hertz / 700).log() - centres[0]) / (centres[1] - centres[0])
    places = places.clamp(0, x.shape[2] - 1)[:, None].expand_as(x)
    low = places.floor().long().clamp_max(x.shape[2] - 2)
    share = places - low
    return x.gather(2, low) * (1 - share) + x.gather(2, low + 1) * share


def _mel(hertz: float) -> float:
    return 1127 * math.log(1 + hertz / 700)


def _change_volume(x: torch.Tensor, augmentation: AugmentationSettings) -> torch.Tensor:
    if not augmentation.volumes:
        return x
    low, high = (2 * math.log(gain) for gain in augmentation.volumes)
    return x + _uniform(low, high, len(x))


@cache
def _noise(dimension: int) -> torch.Tensor:
    """Log-mel energies (frames, dimension) of white noise, 0 dB on average over a frame."""
    white = torch.randn(NOISE_SECONDS * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    with one_thread():
        energies = log_mel(white / FULL_SCALE, dimension)
        return energies - energies.exp().mean().log()


def _add_noise(
    x: torch.Tensor, lengths: torch.Tensor, augmentation: AugmentationSettings
) -> torch.Tensor:
    if not augmentation.noise:
        return x
    noise = _noise(x.shape[2])
    starts = torch.randint(len(noise), (len(x), 1))
    noise = noise[(starts + torch.arange(x.shape[1])) % len(noise)]
    noise = noise + _uniform(*NOISE_TILT, len(x)) * torch.linspace(-1, 1, x.shape[2])
    noise = noise - noise.exp().mean((1, 2), keepdim=True).log()
    present = (torch.arange(x.shape[1]) < lengths[:, None])[..., None]
    power = (x.exp() * present).sum((1, 2), keepdim=True) / (lengths * x.shape[2])[:, None, None]
    least, most = augmentation.noise
    ratio = _uniform(least, most, len(x)) * (math.log(10) / 10)
    noisy = torch.logaddexp(x, noise + power.log() - ratio)
    chosen = torch.rand(len(x), 1, 1) < augmentation.noise_probability
    return torch.where(chosen, noisy, x)


def _mask(x: torch.Tensor, augmentation: AugmentationSettings) -> torch.Tensor:
    """SpecAugment's masks (Park et al. 2019) on energies whose mean is zero."""
    spectrograms = x.transpose(1, 2)[:, None]
    for _ in range(augmentation.time_masks):
        spectrograms = torchaudio.functional.mask_along_axis_iid(
            spectrograms, augmentation.time_mask_frames, 0.0, axis=3
        )
    for _ in range(augmentation.frequency_masks):
        spectrograms = torchaudio.functional.mask_along_axis_iid(
            spectrograms, augmentation.frequency_mask_bins, 0.0, axis=2
        )
    return spectrograms[:, 0].transpose(1, 2)
