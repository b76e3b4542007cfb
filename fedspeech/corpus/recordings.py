"""A folder of recordings, each with its transcript beside it: `a.wav` and `a.txt`.

Folders in it are looked through as well. An utterance's id is the path without its suffix.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedspeech.corpus import cuts
from fedspeech.corpus.cuts import Entry
from fedspeech.errors import CorpusError

AUDIO = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".sph"),
    *(".aif", ".aiff", ".au", ".caf", ".w64"),
)
"""Suffixes of what libsndfile reads."""
OTHER_AUDIO = (".m4a", ".mp4", ".aac", ".wma", ".amr", ".3gp", ".webm")
"""Suffixes of what people have and it does not read."""
TRANSCRIPT = ".txt"


def entries(folder: Path, speaker: str, channel: int | None = None) -> Iterator[Entry]:
    """Every recording and transcript under the folder, by name; all are the one speaker's.

    Hidden files and those with other suffixes are not looked at.
    """
    recordings: dict[Path, list[Path]] = {}
    transcripts: dict[Path, list[Path]] = {}
    for path, fault in _files(folder):
        if fault:
            yield Entry(str(path), None, fault)
            continue
        suffix = path.suffix.lower()
        if suffix in (*AUDIO, *OTHER_AUDIO):
            recordings.setdefault(path.with_suffix(""), []).append(path)
        elif suffix == TRANSCRIPT:
            transcripts.setdefault(path.with_suffix(""), []).append(path)
    for stem in sorted(recordings.keys() | transcripts.keys()):
        id = stem.relative_to(folder).as_posix()
        yield from _pair(recordings.get(stem, ()), transcripts.get(stem, ()), id, speaker, channel)


def holds_recordings(folder: Path) -> bool:
    """Whether there is any audio under the folder."""
    return any(path.suffix.lower() in (*AUDIO, *OTHER_AUDIO) for path, _ in _files(folder))


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Paths by name, each with what is wrong with it before anybody looks into it."""
    refused: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=refused.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield _named(Path(place) / name)
    for error in refused:
        yield Path(error.filename), f"unreadable folder ({error.strerror})"


def _named(path: Path) -> tuple[Path, str]:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        readable = Path(os.fsencode(path).decode(errors="replace"))
        return readable, "its name is not UTF-8; rename it"
    return path, ""


def _pair(
    recordings: Sequence[Path],
    transcripts: Sequence[Path],
    id: str,
    speaker: str,
    channel: int | None,
) -> Iterator[Entry]:
    """What has the same path but for its suffix: one of each is an utterance."""
    if not recordings:
        for path in transcripts:
            kinds = f"{', '.join(AUDIO[:3])} …"
            yield Entry(str(path), None, f"a transcript without a recording ({kinds}) beside it")
        return
    first, *more = recordings
    yield _utterance(first, transcripts, id, speaker, channel)
    for path in more:
        yield Entry(str(path), None, f"{first.name} has the same name already")
    for path in transcripts[1:]:
        yield Entry(str(path), None, f"{transcripts[0].name} has the same name already")


def _utterance(
    path: Path, transcripts: Sequence[Path], id: str, speaker: str, channel: int | None
) -> Entry:
    try:
        source = cuts.recording(path, channel)
        text = _text(path, transcripts)
        return Entry(str(path), cuts.utterance(id, source, text, speaker))
    except CorpusError as error:
        fault = str(error).removeprefix(f"{path}: ")
        if path.suffix.lower() in OTHER_AUDIO:
            fault = f"{path.suffix} is not read; convert it to .wav or .flac"
        return Entry(str(path), None, fault)


def _text(recording: Path, transcripts: Sequence[Path]) -> str:
    if not transcripts:
        raise CorpusError(f"no transcript; expected {recording.stem}{TRANSCRIPT} beside it")
    path = transcripts[0]
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise CorpusError(
            f"{path.name} is not UTF-8: byte 0x{byte:02x} at {error.start}; save it as UTF-8"
        ) from None
    except OSError as error:
        raise CorpusError(f"{path.name}: unreadable transcript ({error.strerror})") from None
