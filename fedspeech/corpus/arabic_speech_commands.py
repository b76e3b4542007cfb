"""Arabic Speech Commands (Ghandoura, Hjabo, Al Dakkak, 2021) from a clone of its public source,
github.com/abdulkaderghandoura/arabic-speech-commands-dataset.

    dataset/KEYWORD/SPEAKER_NO_ROUND.wav      (dataset/zoom in/00000001_NO_01.wav)

The fingerprint is that of commit 72f34382 of 2021-04-05. It covers the names of all 12,000
recordings (30 speakers x 40 keywords x 10 rounds) and their form (16 kHz, one channel, exactly one
second); it does not cover what is said in them.
"""

from collections.abc import Sequence
from pathlib import Path

from lhotse import CutSet, MonoCut

from fedspeech.config.corpus import CorpusSettings
from fedspeech.corpus import cuts
from fedspeech.errors import CorpusError

KEYWORDS = {
    "backward": "khalf",
    "cancel": "ilgha",
    "close": "ighlaq",
    "digit": "raqm",
    "direction": "ittijah",
    "disable": "tatil",
    "down": "asfal",
    "eight": "thamaniya",
    "enable": "tafil",
    "enter": "idkhal",
    "five": "khamsa",
    "forward": "amam",
    "four": "arbaa",
    "left": "yasar",
    "move": "tahrik",
    "next": "attali",
    "nine": "tisa",
    "no": "la",
    "ok": "muwafiq",
    "one": "wahid",
    "open": "fath",
    "options": "khiyarat",
    "previous": "assabiq",
    "receive": "istiqbal",
    "record": "tasjil",
    "right": "yamin",
    "rotate": "tadwir",
    "send": "irsal",
    "seven": "saba",
    "six": "sitta",
    "start": "ibda",
    "stop": "tawaqqaf",
    "three": "thalatha",
    "two": "ithnan",
    "undo": "taraju",
    "up": "aala",
    "yes": "naam",
    "zero": "sifr",
    "zoom in": "takbir",
    "zoom out": "tasghir",
}
"""Folder of the source -> the Arabic word, romanised without long vowels and glottal stops."""

SPEAKERS, ROUNDS = 30, 10


def prepare(settings: CorpusSettings) -> CutSet:
    """The utterances by speaker, round and keyword; each carries `intent` and `round`.

    Raises CorpusError with every problem found, and where the fingerprint differs.
    """
    if settings.path is None:
        raise CorpusError(
            "corpus.path: expected a clone of "
            "github.com/abdulkaderghandoura/arabic-speech-commands-dataset"
        )
    path = Path(settings.path)
    names = listing(path)
    if wrong := differences(names):
        raise CorpusError(f"{path / 'dataset'}: {'; '.join(wrong)}")
    found, problems = read(path, names)
    return cuts.gather(found, problems, str(path))


def listing(path: Path) -> list[str]:
    """The recordings of keywords in the tree, as KEYWORD/SPEAKER_NO_ROUND.wav."""
    folder = path / "dataset"
    found = (wav for keyword in KEYWORDS for wav in (folder / keyword).glob("*.wav"))
    return sorted(wav.relative_to(folder).as_posix() for wav in found)


def differences(names: Sequence[str]) -> list[str]:
    """Where the names differ from the source's."""
    expected = {
        f"{keyword}/{speaker:08d}_NO_{round:02d}.wav"
        for keyword in KEYWORDS
        for speaker in range(1, SPEAKERS + 1)
        for round in range(1, ROUNDS + 1)
    }
    wrong = []
    if missing := sorted(expected - set(names)):
        wrong.append(f"{len(missing)} of {len(expected)} recordings are missing: {_first(missing)}")
    if more := sorted(set(names) - expected):
        wrong.append(f"{len(more)} recordings are not of the source: {_first(more)}")
    return wrong


def read(path: Path, names: Sequence[str]) -> tuple[list[MonoCut], list[str]]:
    """What is usable of the recordings with these names, and what is wrong with the rest."""
    found: list[MonoCut] = []
    problems: list[str] = []
    for round, speaker, keyword in sorted(_parts(name) for name in names):
        try:
            found.append(_utterance(path, speaker, keyword, round))
        except CorpusError as error:
            problems.append(str(error))
    return sorted(found, key=cuts.speaker_of), problems


def _parts(name: str) -> tuple[int, int, str]:
    keyword, file = name.split("/")
    speaker, round = file.removesuffix(".wav").split("_NO_")
    return int(round), int(speaker), keyword


def _utterance(path: Path, speaker: int, keyword: str, round: int) -> MonoCut:
    audio = path / "dataset" / keyword / f"{speaker:08d}_NO_{round:02d}.wav"
    source = cuts.recording(audio, None)
    if (source.sampling_rate, source.num_samples) != (cuts.SAMPLE_RATE, cuts.SAMPLE_RATE):
        raise CorpusError(
            f"{audio}: {source.num_samples} samples at {source.sampling_rate} Hz, "
            "the source has 16000 at 16000 Hz"
        )
    intent = keyword.replace(" ", "_")
    return cuts.utterance(
        id=f"asc{speaker:02d}-{intent}-{round:02d}",
        source=source,
        text=KEYWORDS[keyword],
        speaker=f"asc{speaker:02d}",
        custom={"intent": intent, "round": round},
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
