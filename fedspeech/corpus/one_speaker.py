"""What a box is given: one speaker's speech, as recordings with transcripts or as a manifest."""

from collections.abc import Iterator
from pathlib import Path

from fedspeech.corpus import cut_set, jsonl, lines, recordings
from fedspeech.corpus.cuts import Entry, speaker_of
from fedspeech.errors import CorpusError

OWNER = "owner"
"""Who speaks where nobody is named; the name stays on the box like any other."""
MANIFEST = "manifest.jsonl"
SUFFIXES = (".jsonl", ".jsonl.gz")
OURS, LHOTSES = "ours", "Lhotse's"


def entries(path: Path, channel: int | None = None) -> Iterator[Entry]:
    """The utterances of a folder or manifest, and what is wrong with the rest of it.

    A folder holds our `manifest.jsonl`, or one manifest of ours or cut set of Lhotse's by another
    name, or recordings with transcripts. Raises CorpusError where it is none of these.
    """
    return _of_one(_entries(path, channel))


def _entries(path: Path, channel: int | None) -> Iterator[Entry]:
    manifest = _manifest(path)
    if manifest is None:
        if not recordings.holds_recordings(path):
            raise CorpusError(
                f"{path}: no speech here; expected recordings with transcripts (a.wav, a.txt), "
                f"{MANIFEST}, or a cut set of Lhotse's (cuts.jsonl.gz)"
            )
        return recordings.entries(path, OWNER, channel)
    if _form(manifest) == LHOTSES:
        return cut_set.entries(manifest, OWNER, channel)
    return jsonl.entries(manifest, channel)


def _manifest(path: Path) -> Path | None:
    """The manifest that a path is or that its folder holds; None where there is none."""
    if path.is_file():
        if _form(path) is None:
            raise CorpusError(f"{path}: neither our manifest nor a cut set of Lhotse's")
        return path
    try:
        inside = sorted(each for each in path.iterdir() if each.name.endswith(SUFFIXES))
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror}") from None
    if (ours := path / MANIFEST) in inside:
        return ours
    found = [each for each in inside if _form(each)]
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise CorpusError(f"{path}: {len(found)} manifests ({names}); name the one to read")
    return found[0] if found else None


def _form(manifest: Path) -> str | None:
    """Whose it is, by its first line; None where that is no utterance.

    Raises CorpusError where it cannot be read.
    """
    for number, line in lines.numbered(manifest):
        try:
            first = lines.content(line)
        except CorpusError as error:
            if manifest.name == MANIFEST:
                return OURS
            raise CorpusError(f"{manifest}:{number}: {error}") from None
        if first.get("type") in cut_set.KINDS:
            return LHOTSES
        return OURS if manifest.name == MANIFEST or "audio" in first else None
    raise CorpusError(f"{manifest}: no utterance found")


def _of_one(found: Iterator[Entry]) -> Iterator[Entry]:
    """Whoever is not the first one's speaker is a fault: a box holds one speaker's speech."""
    speaker: str | None = None
    for entry in found:
        if entry.cut is not None:
            speaker = speaker or speaker_of(entry.cut)
            if (other := speaker_of(entry.cut)) != speaker:
                fault = f"speaker {other}; what comes before is {speaker}'s, and a box holds one's"
                entry = Entry(entry.where, None, fault)
        yield entry
