"""The speakers of the synthetic corpus: what they say, and how it sounds."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter, resample_poly

from fedspeech import seeding
from fedspeech.config.corpus import SyntheticSettings
from fedspeech.corpus.cuts import SAMPLE_RATE
from fedspeech.errors import CorpusError

Samples = npt.NDArray[np.float64]
Say = Callable[[Mapping[str, Any]], Samples]

CLASSES = [
    words.split()
    for words in (
        "open close start find play send move show take clear check lock save read call stop",
        "red green small left new second blue large right first black white old upper lower last",
        "window lamp radio table picture garden door letter"
        " number music river market engine ticket kitchen camera",
        "today tomorrow now inside upstairs again tonight later"
        " here outside downstairs monday friday sunday morning evening",
    )
]
"""Actions, qualities, things, times; a vocabulary takes as many of each as it can."""

PHRASES = ((0,), (0, 2), (0, 1, 2), (0, 1, 2, 3))
"""Which classes a phrase of one, two, three and four words has; longer ones are chained."""

ACCENTS = (
    "en",
    "en-us",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-029",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-us-nyc",
)
NAMES = """
    Alex Andrea Andy Denis Diogo Gene Hugo Jacky Mario Michael Reed Storm adam anika antonio aunty
    belinda boris david ed edward edward2 f1 f2 f3 f4 f5 grandma grandpa gustave iven3 iven4 john m1
    m2 m3 m4 m5 m6 m7 m8 marcelo max miguel mike2 pablo paul pedro quincy rob robert sandro steph
    travis victor
"""
VARIANTS = tuple(NAMES.split())
"""Voices whose words are nearer to the same words of the others than to any other word; without
whispers, robots, echoes, and one of each two that sound alike."""

LOUDEST = 0.9
"""No sample goes beyond this share of full scale."""


@dataclass(frozen=True)
class Voice:
    """How one speaker sounds. `pitch` and `range` are espeak-ng's, 0 … 100."""

    speaker: str
    name: str
    rate: float
    """Words per minute."""
    pitch: float
    range: float
    level: float
    """Root mean square of the speech, in dB of full scale."""
    noise: float
    """White noise, in dB of the speech."""
    taps: tuple[float, float, float]
    """The channel: a filter over three samples."""


def draw(settings: SyntheticSettings) -> list[Voice]:
    """The speakers. Raises CorpusError where more are wanted than espeak-ng has voices."""
    most = len(ACCENTS) * len(VARIANTS)
    if settings.speakers > most:
        raise CorpusError(
            f"corpus.synthetic.speakers: {settings.speakers}, but there are {most} distinct voices"
        )
    order = seeding.generator(settings.seed, 0, "", "voices")
    accents, variants = order.permutation(ACCENTS), order.permutation(VARIANTS)
    # the lengths are coprime: every pair comes once before any comes again
    return [
        _voice(
            f"syn{i + 1:03d}",
            f"{accents[i % len(accents)]}+{variants[i % len(variants)]}",
            settings.seed,
        )
        for i in range(settings.speakers)
    ]


def _voice(speaker: str, name: str, seed: int) -> Voice:
    random = seeding.generator(seed, 0, speaker, "voice")
    return Voice(
        speaker=speaker,
        name=name,
        rate=random.uniform(140, 200),
        pitch=random.uniform(30, 70),
        range=random.uniform(30, 80),
        level=random.uniform(-32, -24),
        noise=random.uniform(-35, -15),
        taps=(1.0, random.uniform(-0.6, 0.6), random.uniform(-0.3, 0.3)),
    )


def utterances(
    voice: Voice, settings: SyntheticSettings, say: Say
) -> Iterator[tuple[dict[str, Any], Samples]]:
    """The manifest line and the samples, float64 (samples,), of all that one speaker says."""
    for part, count in (("train", settings.train_utterances), ("test", settings.test_utterances)):
        for number in range(1, count + 1):
            name = f"{voice.speaker}-{part}-{number:03d}"
            random = seeding.generator(settings.seed, 0, voice.speaker, f"{part} {number}")
            text = _phrase(settings, random)
            wave = _record(voice, say(_request(voice, text, random)), random)
            entry = {"id": name, "speaker": voice.speaker, "audio": f"audio/{name}.flac"}
            yield {**entry, "text": text, "part": part, "num_samples": len(wave)}, wave


def _phrase(settings: SyntheticSettings, random: np.random.Generator) -> str:
    size = settings.vocabulary
    classes = [some[: (size + 3 - i) // 4] for i, some in enumerate(CLASSES)]
    words: list[str] = []
    wanted = int(random.integers(settings.words[0], settings.words[1] + 1))
    while len(words) < wanted:
        phrase = PHRASES[min(wanted - len(words), len(PHRASES)) - 1]
        words += [str(random.choice(classes[i])) for i in phrase]
    return " ".join(words)


def _request(voice: Voice, text: str, random: np.random.Generator) -> dict[str, Any]:
    return {
        "text": text,
        "voice": voice.name,
        "volume": 25,  # at espeak-ng's own 100 some voices clip
        "rate": round(voice.rate * random.uniform(0.94, 1.06)),
        "pitch": round(voice.pitch + random.uniform(-4, 4)),
        "range": round(voice.range),
    }


def _record(voice: Voice, speech: Samples, random: np.random.Generator) -> Samples:
    """The speech as the speaker's microphone takes it, between two short pauses."""
    before, after = (int(seconds * SAMPLE_RATE) for seconds in random.uniform(0.05, 0.2, size=2))
    wave = np.pad(speech / np.sqrt(np.mean(speech**2)), (before, after))
    wave += 10 ** (voice.noise / 20) * random.standard_normal(len(wave))
    wave = lfilter(voice.taps, [1.0], wave)
    wave *= 10 ** (voice.level / 20) / np.sqrt(np.mean(wave**2))
    return np.asarray(wave * min(1.0, LOUDEST / np.abs(wave).max()))


class Espeak:
    """espeak-ng in a process of its own, until `close`.

    Raises CorpusError where espeak-ng is not installed, does not start or does not answer.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader as loader
        except ImportError:
            raise CorpusError(
                "the synthetic corpus needs espeak-ng: pip install 'fedspeech[synthetic]'"
            ) from None
        script = str(Path(__file__).with_name("espeak.py"))
        paths = loader.get_library_path(), loader.get_data_path()
        command = [sys.executable, "-P", script, *paths]
        self._child = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        self._rate = self._number()

    def say(self, request: Mapping[str, Any]) -> Samples:
        """Speak a request as in `espeak.py`: float64 (samples,), full scale = 1, `SAMPLE_RATE`."""
        stdin = self._child.stdin
        assert stdin
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            self._fail()
        pcm = np.frombuffer(self._read(self._number()), dtype="<i2")
        if not pcm.any():
            raise CorpusError(f"espeak-ng says nothing for {request}")
        return np.asarray(resample_poly(pcm / 2.0**15, SAMPLE_RATE, self._rate))

    def close(self) -> None:
        """Let the process end."""
        self._child.communicate()

    def _number(self) -> int:
        return int.from_bytes(self._read(4), "little")

    def _read(self, count: int) -> bytes:
        assert self._child.stdout
        data = self._child.stdout.read(count)
        if len(data) < count:
            self._fail()
        return data

    def _fail(self) -> NoReturn:
        _, message = self._child.communicate()
        raise CorpusError(f"espeak-ng stopped: {message.decode(errors='replace').strip()}")
