"""Fluent Speech Commands (fluent.ai): short commands for a smart home, with their meaning.

    data/{train,valid,test}_data.csv     wavs/speakers/SPEAKER/*.wav

The lists are read here: Lhotse's recipe `prepare_slu` drops who speaks.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

from lhotse import CutSet, MonoCut

from fedspeech.config.corpus import CorpusSettings
from fedspeech.corpus import cuts
from fedspeech.errors import CorpusError

COLUMNS = ("path", "speakerId", "transcription", "action", "object", "location")


def prepare(settings: CorpusSettings) -> CutSet:
    """The utterances in the order of the lists, each with `part`, `action`, `object`, `location`.

    Raises CorpusError with every problem found, each with file and line.
    """
    if settings.path is None:
        raise CorpusError("corpus.path: expected the folder fluent_speech_commands_dataset")
    path = Path(settings.path)
    found: list[MonoCut] = []
    problems: list[str] = []
    for part in ("train", "valid", "test"):
        _read(path, part, settings.channel, found, problems)
    return cuts.gather(found, problems, str(path))


def _read(
    path: Path, part: str, channel: int | None, found: list[MonoCut], problems: list[str]
) -> None:
    listed = path / "data" / f"{part}_data.csv"
    try:
        with listed.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restval="")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{listed}: not a readable list: {error}") from None
    if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise CorpusError(f"{listed}:1: expected a column {missing[0]}")
    for line, row in rows:
        try:
            found.append(_utterance(path, part, row, channel))
        except CorpusError as error:
            problems.append(f"{listed}:{line}: {error}")


def _utterance(path: Path, part: str, row: Mapping[str, str], channel: int | None) -> MonoCut:
    audio = path / row["path"]
    return cuts.utterance(
        id=f"{row['speakerId']}-{audio.stem}",
        source=cuts.recording(audio, channel),
        text=row["transcription"],
        speaker=row["speakerId"],
        custom={"part": part, **{name: row[name] for name in ("action", "object", "location")}},
    )
