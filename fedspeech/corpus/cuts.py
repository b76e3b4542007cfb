"""What recipes share: one utterance as a Lhotse cut, its samples, and a list of what is wrong."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
import torch
import torchaudio
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment

from fedspeech.errors import CorpusError
from fedspeech.tensors import write_whole

SAMPLE_RATE = 16_000
"""Samples per second of all speech inside the platform; other rates are resampled."""

SEEK_INEXACT = {"OGG", "MP3"}
"""Formats whose first samples after a seek can differ from a full decode."""

LARGEST_TERM = 2000
"""Of the ratio of a sample rate to ours: resampling takes as many filters."""

MOST_PROBLEMS = 20


class Entry(NamedTuple):
    """A line or file of a corpus: the utterance that it is, or what is wrong with it."""

    where: str
    cut: MonoCut | None
    fault: str = ""


def recording(path: Path, channel: int | None) -> Recording:
    """The audio file as a Lhotse recording of one channel.

    Raises CorpusError where it is missing, unreadable or empty, has an odd sample rate, or has
    several channels and `channel` does not say which to take.
    """
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError) as error:
        raise CorpusError(f"{path}: {_why_unreadable(path, error)}") from None
    if info.frames == 0:
        raise CorpusError(f"{path}: audio of length zero")
    if max(info.samplerate, SAMPLE_RATE) / math.gcd(info.samplerate, SAMPLE_RATE) > LARGEST_TERM:
        raise CorpusError(
            f"{path}: {info.samplerate} samples per second, expected a usual rate "
            f"(8000, 16000, 22050, 44100, 48000 …)"
        )
    if info.channels > 1 and channel is None:
        raise CorpusError(
            f"{path}: {info.channels} channels, expected 1; name one to take, from 0 "
            "(--channel, or corpus.channel of an experiment)"
        )
    if channel is not None and channel >= info.channels:
        raise CorpusError(f"{path}: no channel {channel}, it has {info.channels} (from 0)")
    return Recording(
        id=str(path),
        sources=[AudioSource(type="file", channels=[channel or 0], source=str(path))],
        sampling_rate=info.samplerate,
        num_samples=info.frames,
        duration=info.frames / info.samplerate,
        channel_ids=[channel or 0],
    )


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        path.stat()
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as refused:  # libsndfile says "System error" to all of these
        return f"unreadable audio ({getattr(refused, 'strerror', refused)})"
    return f"unreadable audio ({error})"


def utterance(
    id: str,
    source: Recording,
    text: str,
    speaker: str,
    span: tuple[float, float] | None = None,
    custom: Mapping[str, Any] | None = None,
) -> MonoCut:
    """One utterance of a recording; `span` is (start, duration) in seconds, by default all of it.

    Raises CorpusError for an empty transcript or a span that holds no sample, is not finite or lies
    outside the recording.
    """
    start, duration = span or (0.0, source.duration)
    half_sample = 0.5 / source.sampling_rate
    if not text.strip():
        raise CorpusError(f"utterance {id}: empty transcript")
    if not (math.isfinite(start) and math.isfinite(duration)):
        raise CorpusError(f"utterance {id}: expected a span in seconds, found {span}")
    if round(duration * source.sampling_rate) < 1:
        raise CorpusError(f"utterance {id}: audio of length zero")
    if start < 0 or start + duration > source.duration + half_sample:
        raise CorpusError(
            f"utterance {id}: [{start:g} s, {start + duration:g} s] lies outside its recording "
            f"of {source.duration:g} s ({source.id})"
        )
    channel = source.channel_ids[0]
    supervision = SupervisionSegment(
        id=id,
        recording_id=source.id,
        start=0.0,
        duration=duration,
        channel=channel,
        text=" ".join(text.split()),
        speaker=speaker,
        custom=dict(custom or {}),
    )
    return MonoCut(
        id=id,
        start=start,
        duration=duration,
        channel=channel,
        supervisions=[supervision],
        recording=source,
    )


def samples(cut: MonoCut) -> torch.Tensor:
    """The cut's audio: float32 of shape (samples,) at `SAMPLE_RATE`, full scale = 1.

    Raises CorpusError where the file cannot be read any more, ends too early, or has samples that
    are no numbers.
    """
    source = cut.recording.sources[0]
    rate = cut.recording.sampling_rate
    first, count = round(cut.start * rate), round(cut.duration * rate)
    try:
        wave = _read(source.source, first, count)[:, source.channels[0]]
    except (soundfile.LibsndfileError, OSError) as error:
        raise CorpusError(f"{source.source}: unreadable audio ({error})") from None
    if len(wave) < count - 1:  # start and duration are rounded each for itself
        raise CorpusError(
            f"{source.source}: expected {count} samples from sample {first} on, found {len(wave)}"
        )
    if not bool(torch.isfinite(wave).all()):
        raise CorpusError(f"{source.source}: samples that are NaN or infinite")
    if rate != SAMPLE_RATE:
        wave = torchaudio.functional.resample(wave, rate, SAMPLE_RATE)
    return wave.contiguous()


def _read(path: str, first: int, count: int) -> torch.Tensor:
    with soundfile.SoundFile(path) as file:
        if file.format in SEEK_INEXACT:
            return _read_whole(path)[first : first + count]
        file.seek(min(first, file.frames))
        return torch.from_numpy(file.read(count, dtype="float32", always_2d=True))


@lru_cache(maxsize=2)
def _read_whole(path: str) -> torch.Tensor:
    wave, _ = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(wave)


def gather(cuts: Sequence[MonoCut], problems: Sequence[str], source: str) -> CutSet:
    """The cuts as a set, unless something is wrong.

    Raises CorpusError with all problems, the first `MOST_PROBLEMS` of them in words.
    """
    repeated = [id for id, count in Counter(cut.id for cut in cuts).items() if count > 1]
    lines = [*problems, *(f"{source}: utterance id {id} comes more than once" for id in repeated)]
    if len(lines) > MOST_PROBLEMS:
        lines[MOST_PROBLEMS:] = [f"… and {len(lines) - MOST_PROBLEMS} more"]
    if lines:
        raise CorpusError("\n".join(lines))
    if not cuts:
        raise CorpusError(f"{source}: no utterance found")
    return CutSet.from_cuts(cuts)


def speaker_of(cut: MonoCut) -> str:
    """The speaker's id."""
    return str(cut.supervisions[0].speaker)


def text_of(cut: MonoCut) -> str:
    """The transcript."""
    return str(cut.supervisions[0].text)


def write(path: Path, cuts: Sequence[MonoCut]) -> None:
    """Write cuts as Lhotse reads them, whole or not at all; their recordings by absolute paths.

    Raises DiskError where the disk does not take it.
    """
    placed = CutSet.from_cuts(cuts).with_recording_path_prefix(Path.cwd())
    lines = [json.dumps(cut.to_dict(), ensure_ascii=False) + "\n" for cut in placed]
    write_whole(path, lambda part: part.write_text("".join(lines), encoding="utf-8"))
