"""What a box offers and what it reaches: `fedspeech doctor --server`."""

from collections.abc import Iterator
from pathlib import Path

from fedspeech import connection, finding, machine
from fedspeech.corpus.check import check, command
from fedspeech.corpus.one_speaker import entries
from fedspeech.errors import CorpusError
from fedspeech.finding import Finding

LEAST_MEMORY = 2**30
"""In which a box fine-tunes the largest model on five minutes of speech."""


def findings(
    server: connection.Address,
    ca: Path | None,
    key: Path | None,
    speech: Path | None,
    channel: int | None,
    device: Path,
) -> Iterator[Finding]:
    """Everything that is looked at, each as soon as it is known."""
    yield from connection.findings(server, ca, key)
    yield finding.disk("disk", device)
    yield _memory()
    if speech is not None:
        yield _speech(speech, channel)


def _memory() -> Finding:
    limit, free = machine.memory_limit_bytes(), machine.memory_free_bytes()
    todo = f"expected {finding.gib(LEAST_MEMORY)} for this box" if limit < LEAST_MEMORY else ""
    return Finding("memory", f"{finding.gib(free)} free of {finding.gib(limit)}", todo)


def _speech(folder: Path, channel: int | None) -> Finding:
    try:
        found = list(check(entries(folder, channel)))
    except (CorpusError, OSError) as error:
        return Finding("speech", str(error), "record some; `fedspeech corpus check` says more")
    usable = sum(one.cut is not None for one in found)
    said = f"{sum(one.seconds for one in found):.1f} s usable, {usable} of {len(found)} utterances"
    todo = "" if usable == len(found) else f"see {command(folder, channel)}"
    return Finding("speech", said, todo, needed=usable == 0)
