"""What a corpus holds: the paper's Table 1 for any partition, and a name for the speech itself."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lhotse import MonoCut

from fedspeech.corpus.cuts import speaker_of, text_of
from fedspeech.corpus.partition import Partition, by_speaker
from fedspeech.errors import CorpusError
from fedspeech.tensors import sha256_of_file, write_whole


def table(partition: Partition) -> list[dict[str, Any]]:
    """One row per part: generic, development, and the clients' train_s and test_s together.

    There is none for what is not here: the clients' speech may be on their boxes. A row has `part`,
    `speakers`, `utterances`, `words`, `hours` and `seconds_per_speaker`, with its `mean`, `least`
    and `most`.
    """
    parts: dict[str, Iterable[MonoCut]] = {
        "generic": partition.generic,
        "development": partition.development,
        "train_s": [cut for client in partition.clients for cut in client.train],
        "test_s": [cut for client in partition.clients for cut in client.test],
    }
    listed = {part: list(cuts) for part, cuts in parts.items()}
    return [_row(part, cuts) for part, cuts in listed.items() if cuts]


def _row(part: str, cuts: Sequence[MonoCut]) -> dict[str, Any]:
    each = [sum(cut.duration for cut in own) for own in by_speaker(cuts).values()]
    return {
        "part": part,
        "speakers": len(each),
        "utterances": len(cuts),
        "words": sum(len(text_of(cut).split()) for cut in cuts),
        "hours": sum(each) / 3600,
        "seconds_per_speaker": {
            "mean": sum(each) / len(each),
            "least": min(each),
            "most": max(each),
        },
    }


def fingerprint(corpus: Iterable[MonoCut]) -> str:
    """SHA-256 over id, speaker, text, span, further fields and size of the audio file of each
    utterance, in order.

    Audio itself is not read: this takes seconds for the largest corpora.
    """
    digest = hashlib.sha256()
    for cut in corpus:
        size = Path(cut.recording.sources[0].source).stat().st_size
        entry = [cut.id, speaker_of(cut), text_of(cut), cut.start, cut.duration, size]
        fields = cut.supervisions[0].custom or {}
        digest.update(json.dumps([*entry, fields], sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def sound(corpus: Iterable[MonoCut], folder: Path) -> str:
    """SHA-256 over those of the audio files of all utterances, each once, in order.

    It is kept in `folder`, and files are read again only where the time of their last change is
    another one, or their size. Raises CorpusError where one cannot be read.
    """
    paths = dict.fromkeys(Path(cut.recording.sources[0].source) for cut in corpus)
    try:
        stats = [(str(path.absolute()), path.stat()) for path in paths]
        name = json.dumps([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])
        kept = folder / f"{hashlib.sha256(name.encode()).hexdigest()}.sound"
        if kept.exists():
            return kept.read_text(encoding="ascii")
        every = "\n".join(map(sha256_of_file, paths))
    except OSError as error:
        raise CorpusError(f"cannot read the speech: {error}") from None
    found = hashlib.sha256(every.encode()).hexdigest()
    write_whole(kept, lambda part: part.write_text(found, encoding="ascii"))
    return found
