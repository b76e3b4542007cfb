import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import soundfile

# Before torch is imported: threads that wait for each other on a busy machine take many times
# longer than one. A test that is about threads says how many.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# A machine that is slow today is no failure, and a failure must come again tomorrow.
hypothesis.settings.register_profile("fedspeech", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fedspeech")

RATE = 16_000
TONES = (440.0, 700.0, 1110.0, 1770.0)
"""Eight semitones apart; speakers are at most three semitones off."""
WORDS = {"ba": (0, 2), "di": (2, 0), "gu": (1, 3), "ke": (3, 1), "lo": (0, 3), "mi": (2, 1)}
TONE_SECONDS, PAUSE_SECONDS = 0.09, 0.05


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have long tests: no process waits for one of them in the end."""
    long = {item.path for item in items if any(map(item.get_closest_marker, ("faults", "slow")))}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def tone_corpus() -> Callable[..., Path]:
    """Write a corpus in which each word is two tones, sung higher or lower by each speaker.

    `tone_corpus(folder, speakers)` writes folder/manifest.jsonl (id, speaker, audio, text, round)
    and one WAV file for each utterance, and returns the folder. Speakers are a number or names;
    each says `per_round` utterances in each of `rounds` rounds (from 1), of one to `most_words`
    words. Every speaker says every word in every round where `per_round` allows it.
    """

    def write(
        folder: Path,
        speakers: int | Sequence[str],
        rounds: int = 4,
        per_round: int = 6,
        most_words: int = 2,
        words: Sequence[str] = tuple(WORDS),
        seed: int = 0,
    ) -> Path:
        names = [f"t{i:02}" for i in range(speakers)] if isinstance(speakers, int) else speakers
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        lines = []
        for index, name in enumerate(names):
            draw = np.random.default_rng([seed, index])
            shift = 2 ** (draw.uniform(-3, 3) / 12)
            for number in range(rounds * per_round):
                more = draw.integers(most_words)
                said = [words[number % len(words)], *draw.choice(words, more)]
                id = f"{name}-{number:03}"
                wave = np.concatenate([_sing(word, shift, draw) for word in said])
                soundfile.write(folder / "audio" / f"{id}.wav", wave, RATE)
                entry = {
                    "id": id,
                    "speaker": name,
                    "audio": f"audio/{id}.wav",
                    "text": " ".join(said),
                    "round": number // per_round + 1,
                }
                lines.append(json.dumps(entry) + "\n")
        (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
        return folder

    return write


def _sing(word: str, shift: float, draw: np.random.Generator) -> np.ndarray:
    time = np.arange(round(TONE_SECONDS * RATE)) / RATE
    tones = [np.sin(2 * np.pi * TONES[tone] * shift * time) for tone in WORDS[word]]
    wave = 0.2 * np.concatenate([*tones, np.zeros(round(PAUSE_SECONDS * RATE))])
    return wave + 0.01 * draw.standard_normal(len(wave))


@pytest.fixture(scope="session")
def child() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python code in a process of its own; `child(code, *arguments)`.

    The code finds its arguments, as strings, in sys.argv[1:].
    """

    def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture
def small_disk(tmp_path) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A file system in memory, of 64 KiB, and what sets its size in bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk cannot be mounted here")

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)

    yield folder, resize
    # What is mapped from it may still be in memory.
    subprocess.run(["umount", "--lazy", folder], check=True)
