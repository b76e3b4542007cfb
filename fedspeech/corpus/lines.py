"""Manifests with one JSON object per line, plain or gzipped: what ours and Lhotse's share."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lhotse import MonoCut

from fedspeech.corpus.cuts import Entry
from fedspeech.errors import CorpusError

Utterances = Callable[[dict[str, Any]], Iterable[MonoCut]]
"""What one line's object says; raises CorpusError for what is wrong with it."""


def entries(manifest: Path, utterances: Utterances) -> Iterator[Entry]:
    """The utterances of each line; where something is wrong with it, an entry that says what.

    Raises CorpusError where the manifest itself cannot be read.
    """
    first_line: dict[str, int] = {}
    for number, line in numbered(manifest):
        where = f"{manifest}:{number}"
        try:
            for cut in utterances(content(line)):
                if cut.id in first_line:
                    before = first_line[cut.id]
                    raise CorpusError(f"utterance id {cut.id} was on line {before} already")
                first_line[cut.id] = number
                yield Entry(where, cut)
        except CorpusError as error:
            yield Entry(where, None, str(error))


def numbered(manifest: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers from 1.

    Raises CorpusError where the manifest cannot be read.
    """
    try:
        data = manifest.read_bytes()
        lines = (gzip.decompress(data) if manifest.suffix == ".gz" else data).decode().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise CorpusError(f"{manifest}: not a readable manifest: {error}") from None
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def content(line: str) -> dict[str, Any]:
    """The object of a line. Raises CorpusError where it is none, or has half a character in it."""
    try:
        entry = json.loads(line)
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise CorpusError(f"expected characters, found {half!a}, half of one") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep lists
        raise CorpusError(f"not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise CorpusError(f"expected a JSON object, found {type(entry).__name__}")
    return entry
