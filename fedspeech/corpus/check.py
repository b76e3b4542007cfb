"""What of some speech is usable, and what is wrong with the rest, utterance by utterance."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from lhotse import MonoCut

from fedspeech.corpus.cuts import SAMPLE_RATE, Entry, samples, text_of
from fedspeech.errors import CorpusError
from fedspeech.tensors import raw
from fedspeech.units import Units

LEAST_SECONDS, MOST_SECONDS = 0.1, 20.0
"""Shorter than a syllable; longer than what a small box can train on at once."""
SILENCE = 1e-3
"""Of full scale: where nothing is louder than -60 dB, nothing was said."""
CLIPPED, MOST_CLIPPED = 0.98, 0.01
"""From where on a sample counts as cut off, and the share of such samples that speech may have."""


def command(speech: Path, channel: int | None) -> str:
    """The command by which somebody sees what is wrong with some speech."""
    return f"`fedspeech corpus check {speech}{'' if channel is None else f' --channel {channel}'}`"


class Checked(NamedTuple):
    """An entry: its utterance and length where it is usable, or what is wrong with it."""

    where: str
    cut: MonoCut | None
    fault: str = ""
    note: str = ""
    """What is done to use it."""

    @property
    def seconds(self) -> float:
        """Of usable speech."""
        return 0.0 if self.cut is None else float(self.cut.duration)


def check(entries: Iterable[Entry], units: Units | None = None) -> Iterator[Checked]:
    """Listen to every utterance, one at a time; with `units`, spell its transcript as well."""
    heard: dict[bytes, str] = {}
    for entry in entries:
        if entry.cut is None:
            yield Checked(entry.where, None, entry.fault)
            continue
        faults = [*_of_text(entry.cut, units), *_of_audio(entry, heard)]
        if faults:
            yield Checked(entry.where, None, "; ".join(faults))
        else:
            yield Checked(entry.where, entry.cut, note=_note(entry.cut))


def _note(cut: MonoCut) -> str:
    rate = cut.recording.sampling_rate
    return "" if rate == SAMPLE_RATE else f"resampled from {rate} to {SAMPLE_RATE} Hz"


def _of_text(cut: MonoCut, units: Units | None) -> Iterator[str]:
    if units is None:
        return
    try:
        if not units.encode(text_of(cut)):
            yield "the model spells nothing of its transcript"
    except CorpusError as error:
        yield str(error)


def _of_audio(entry: Entry, heard: dict[bytes, str]) -> Iterator[str]:
    """What is wrong with an utterance's sound; `heard` are those before it, by their samples."""
    assert entry.cut is not None
    seconds = entry.cut.duration
    if seconds < LEAST_SECONDS:
        yield f"too short: {seconds:.3g} s, expected at least {LEAST_SECONDS:g} s"
        return
    if seconds > MOST_SECONDS:  # and is not read: it may be a whole day
        yield f"too long: {seconds:.1f} s, expected at most {MOST_SECONDS:g} s"
        return
    try:
        wave = samples(entry.cut)
    except CorpusError as error:
        yield str(error).removeprefix(f"{entry.where}: ")
        return
    if faults := list(_of_samples(wave)):
        yield from faults
        return
    digest = hashlib.sha256(raw(wave)).digest()
    if digest in heard:
        yield f"the same audio as {heard[digest]}"
    heard.setdefault(digest, entry.where)


def _of_samples(wave: torch.Tensor) -> Iterator[str]:
    loudness = wave.abs()
    if float(loudness.max()) < SILENCE:
        yield "silent"
    clipped = float((loudness >= CLIPPED).float().mean())
    if clipped > MOST_CLIPPED:
        yield f"clipped: {100 * clipped:.0f} % of its samples are at full scale"
