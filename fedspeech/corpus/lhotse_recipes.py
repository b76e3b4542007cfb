"""What the recipes that Lhotse has itself (LibriSpeech, Common Voice) need to become ours."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lhotse import CutSet, MonoCut

from fedspeech.config.corpus import CorpusSettings
from fedspeech.corpus import cuts
from fedspeech.errors import CorpusError


@contextmanager
def errors_of_lhotse(path: Path) -> Iterator[None]:
    """Whatever stops one of Lhotse's recipes is raised as a CorpusError that names the corpus."""
    try:
        yield
    except Exception as error:  # its recipes name no errors of their own
        raise CorpusError(f"{path}: {type(error).__name__}: {error}") from error


def convert(
    parts: Mapping[str, Mapping[str, Any]],
    expected: Mapping[str, Path],
    settings: CorpusSettings,
    path: Path,
) -> CutSet:
    """Lhotse's manifests (part -> recordings, supervisions) as cuts in the order of their ids.

    `expected` says for every utterance id which list names it. Lhotse leaves out what it does not
    find; here it is a problem. Raises CorpusError with every problem found.
    """
    found: list[MonoCut] = []
    problems: list[str] = []
    for part, manifests in sorted(parts.items()):
        for supervision in manifests["supervisions"]:
            source = manifests["recordings"][supervision.recording_id].sources[0].source
            try:
                found.append(
                    cuts.utterance(
                        id=supervision.id,
                        source=cuts.recording(Path(source), settings.channel),
                        text=supervision.text,
                        speaker=supervision.speaker,
                        custom={"part": part, **(supervision.custom or {})},
                    )
                )
            except CorpusError as error:
                problems.append(str(error))
    usable = {supervision.id for m in parts.values() for supervision in m["supervisions"]}
    problems += [f"{expected[id]}: no audio for {id}" for id in sorted(set(expected) - usable)]
    return cuts.gather(sorted(found, key=lambda cut: cut.id), problems, str(path))
