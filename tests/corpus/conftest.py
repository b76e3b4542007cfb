import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, MonoCut, Recording

from fedspeech.corpus import cuts

SPEECH = Path(__file__).parents[2] / "../shared/data"


@pytest.fixture
def speech() -> Path:
    if not SPEECH.is_dir():
        pytest.skip(f"no real speech at {SPEECH}")
    return SPEECH


@pytest.fixture
def sine(tmp_path: Path) -> Callable[..., Path]:
    """Write half-scale sines, one frequency per channel."""

    def write(
        name: str, *frequencies: float, rate: int = 16_000, seconds: float = 1.0, **kind: str
    ) -> Path:
        time = np.arange(round(rate * seconds)) / rate
        waves = [0.5 * np.sin(2 * np.pi * frequency * time) for frequency in frequencies]
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.stack(waves, axis=1), rate, **kind)
        return path

    return write


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Path]:
    """Write a manifest; an entry that is a string is a line as it stands."""

    def write(*entries: dict | str) -> Path:
        path = tmp_path / "manifest.jsonl"
        lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def spoken() -> Callable[..., MonoCut]:
    """An utterance of which only the manifest's side is there."""

    def make(speaker: str, number: int, seconds: float, text: str = "a b", **custom) -> MonoCut:
        id = f"{speaker}-{number}"
        source = Recording(
            id=id,
            sources=[AudioSource(type="file", channels=[0], source=f"{id}.wav")],
            sampling_rate=16_000,
            num_samples=round(16_000 * seconds),
            duration=seconds,
            channel_ids=[0],
        )
        return cuts.utterance(id, source, text, speaker, custom=custom)

    return make
