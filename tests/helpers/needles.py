"""What must not leave a device, as bytes to look for: sound, features, words and names."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

from fedspeech import tensors
from fedspeech.features import FULL_SCALE

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


def leaks(content: bytes, needles: Iterable[bytes]) -> list[bytes]:
    """Those that are in it."""
    return [needle for needle in needles if needle in content]
