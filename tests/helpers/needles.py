"""What must not leave a device, as bytes to look for: sound, features, words and names."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from clients.speaker import Speaker
from fedspeech import evaluation, tensors
from fedspeech.device.personal import usual
from fedspeech.device.store import BASE, GENERIC
from fedspeech.features import FULL_SCALE
from fedspeech.tensors import Tensors

SECRET = "quisquiliae"
"""A word that only clients say, so that the vocabulary of G does not carry it."""
PIECE = 1600
"""A tenth of a second."""
FRAMES = 10


def audio(folder: Path, entries: Iterable[dict]) -> list[bytes]:
    """Tenths of seconds of each utterance, as 16-bit and 32-bit samples at both usual scales."""
    found = []
    for entry in entries:
        wave, _ = soundfile.read(folder / entry["audio"], dtype="int16")
        piece = wave[PIECE : 2 * PIECE]
        real = (piece / FULL_SCALE).astype(np.float32)
        found += [piece.tobytes(), real.tobytes(), (real * np.float32(FULL_SCALE)).tobytes()]
    return found


def features(devices: Path) -> list[bytes]:
    """Some frames of each utterance as the devices keep them, and what is left without the mean."""
    found = []
    for path in sorted(devices.glob("*/features/*.safetensors")):
        for energies in tensors.read(path).values():
            frames = energies[5 : 5 + FRAMES]
            found += [frames.numpy().tobytes(), (frames - energies.mean(0)).numpy().tobytes()]
    return found


def words(entries: Iterable[dict], names: Iterable[str]) -> list[bytes]:
    """The secret word, whole transcripts of several words, ids, file names, speakers' names."""
    found = {SECRET, *names, *(name.split()[1] for name in names)}
    for entry in entries:
        found |= {entry["id"], Path(entry["audio"]).name}
        if " " in entry["text"]:
            found.add(entry["text"])
    return [text.encode() for text in sorted(found)]


def hypotheses(devices: Path) -> list[bytes]:
    """What each device hears in its own speech with G, P_s, what is installed and what its owner
    uses, where that is several words: one alone stands in the vocabulary of G, which is public."""
    found = set[str]()
    for path in sorted(devices.glob("*/device.json")):
        device = Speaker(path.parent)
        about = device.description
        spoken = [*device.utterances("train"), *device.utterances("test")]
        for model in _models(device):
            module = about.module(model).eval()
            found |= {*evaluation.transcribe(module, spoken, about.features, about.units)}
    return [text.encode() for text in sorted(found) if " " in text]


def _models(device: Speaker) -> Iterator[Tensors]:
    yield device.store.get(GENERIC)
    yield device.personal()
    yield usual(device.store)[0]
    if device.store.hash(BASE) is not None:
        yield device.store.get(BASE)


def leaks(content: bytes, needles: Iterable[bytes]) -> list[bytes]:
    """Those that are in it."""
    return [needle for needle in needles if needle in content]
