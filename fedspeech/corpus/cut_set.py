"""A Lhotse cut set, `cuts.jsonl.gz` or `cuts.jsonl`: every supervision is an utterance.

Paths of recordings that are not absolute start where the manifest is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.serialization import deserialize_item

from fedspeech.corpus import cuts, lines
from fedspeech.corpus.cuts import Entry
from fedspeech.errors import CorpusError

KINDS = ("MonoCut", "MultiCut", "MixedCut", "PaddingCut")
"""What a line of a cut set calls itself; only the first is one recording's speech and no more."""


def entries(manifest: Path, speaker: str, channel: int | None = None) -> Iterator[Entry]:
    """Every supervision of every cut; who names no speaker is `speaker`.

    Raises CorpusError where the manifest itself cannot be read.
    """
    open_once = lru_cache(maxsize=None)(cuts.recording)

    def utterances(content: dict[str, Any]) -> Iterator[MonoCut]:
        with _errors_of_lhotse():
            cut = _cut(content)
            path = manifest.parent / _source(cut.recording)
            several = len(cut.recording.channel_ids or ()) > 1
            source = open_once(path, cut.channel if several else channel)
        for supervision in cut.supervisions:
            with _errors_of_lhotse():
                found = _utterance(cut, supervision, source, speaker)
            yield found

    return lines.entries(manifest, utterances)


@contextmanager
def _errors_of_lhotse() -> Iterator[None]:
    """Whatever is met in a damaged line is raised as a CorpusError."""
    try:
        yield
    except CorpusError:
        raise
    except Exception as error:  # Lhotse checks few fields, and names no errors of its own
        raise CorpusError(f"not a cut of Lhotse's: {type(error).__name__}: {error}") from None


def _cut(content: dict[str, Any]) -> MonoCut:
    kind = content.get("type")
    if kind != KINDS[0]:
        raise CorpusError(f"expected a {KINDS[0]}, found {kind!r}")
    cut = deserialize_item(content)
    if not cut.has_recording:
        raise CorpusError(f"cut {cut.id}: no recording; features alone are not enough")
    if not cut.supervisions:
        raise CorpusError(f"cut {cut.id}: no supervision, so nobody knows what is said")
    return cut


def _source(recording: Recording) -> str:
    """The one file that a recording is."""
    kinds = [source.type for source in recording.sources]
    if kinds != ["file"]:
        raise CorpusError(f"recording {recording.id}: expected one file, found {kinds}")
    if recording.transforms:
        raise CorpusError(f"recording {recording.id}: expected speech as it was recorded")
    return str(recording.sources[0].source)


def _utterance(
    cut: MonoCut, supervision: SupervisionSegment, source: Recording, speaker: str
) -> MonoCut:
    """What of a supervision lies inside its cut."""
    start, end = max(0.0, supervision.start), min(cut.duration, supervision.end)
    return cuts.utterance(
        id=supervision.id,
        source=source,
        text=supervision.text or "",
        speaker=supervision.speaker or speaker,
        span=(cut.start + start, end - start),
        custom=supervision.custom,
    )
