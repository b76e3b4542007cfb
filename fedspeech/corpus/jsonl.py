"""A manifest with one JSON object per line: the way to bring one's own corpus.

    {"id": "u1", "speaker": "anna", "audio": "audio/u1.flac", "text": "hello world"}

`audio` is relative to the manifest. Several utterances may lie in one file: `start_sample` and
`num_samples`, in samples of that file, say which part each is; or `start` and `duration`, in
seconds. All further keys are kept.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

from lhotse import CutSet, MonoCut, Recording

from fedspeech.config.corpus import CorpusSettings
from fedspeech.corpus import cuts, lines
from fedspeech.corpus.cuts import Entry
from fedspeech.errors import CorpusError

REQUIRED = ("id", "speaker", "audio", "text")
OWN = {*REQUIRED, "start", "duration", "start_sample", "num_samples", "sample_rate"}


def prepare(settings: CorpusSettings) -> CutSet:
    """The utterances of `manifest.jsonl` in the folder `path`, or of the file `path` itself.

    Raises CorpusError with every problem found, each with file and line.
    """
    if settings.path is None:
        raise CorpusError("corpus.path: expected the folder or manifest of the corpus")
    path = Path(settings.path)
    manifest = path / "manifest.jsonl" if path.is_dir() else path
    found, problems = read(manifest, settings.channel)
    return cuts.gather(found, problems, str(manifest))


def read(manifest: Path, channel: int | None = None) -> tuple[list[MonoCut], list[str]]:
    """What is usable of a manifest, and what is wrong with the rest, one line each.

    Raises CorpusError where the manifest itself cannot be read.
    """
    found = list(entries(manifest, channel))
    problems = [f"{entry.where}: {entry.fault}" for entry in found if entry.cut is None]
    return [entry.cut for entry in found if entry.cut is not None], problems


def entries(manifest: Path, channel: int | None = None) -> Iterator[Entry]:
    """`read`, line by line."""
    open_once = lru_cache(maxsize=None)(cuts.recording)

    def utterances(entry: dict[str, Any]) -> Iterator[MonoCut]:
        _check(entry)
        yield _utterance(entry, open_once(manifest.parent / entry["audio"], channel))

    return lines.entries(manifest, utterances)


def _utterance(entry: Mapping[str, Any], source: Recording) -> MonoCut:
    return cuts.utterance(
        id=entry["id"],
        source=source,
        text=entry["text"],
        speaker=entry["speaker"],
        span=_span(entry, source.sampling_rate),
        custom={key: value for key, value in entry.items() if key not in OWN},
    )


def _check(entry: Mapping[str, Any]) -> None:
    for key in REQUIRED:
        if not isinstance(entry.get(key), str):
            found = f"found {entry[key]!r}" if key in entry else "it is missing"
            raise CorpusError(f"{key}: expected a string, {found}")
    for key in ("id", "speaker"):
        if not entry[key].strip():
            raise CorpusError(f"{key}: expected a name, found {entry[key]!r}")


def _span(entry: Mapping[str, Any], rate: int) -> tuple[float, float] | None:
    for start, length, unit in (("start_sample", "num_samples", rate), ("start", "duration", 1)):
        if start in entry:
            first, count = entry[start], entry.get(length)
            if not _is_number(first) or not _is_number(count):
                raise CorpusError(
                    f"{start} and {length}: expected two numbers, found {first!r} and {count!r}"
                )
            return first / unit, count / unit
    return None


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number that float takes exactly; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53
