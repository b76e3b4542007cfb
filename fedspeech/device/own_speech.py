"""The owner's speech on a box: what of it is usable, cut into train_s and test_s."""

import json
from pathlib import Path

from fedspeech.config.corpus import PartitionSettings
from fedspeech.corpus.check import check, command
from fedspeech.corpus.cuts import write
from fedspeech.corpus.one_speaker import entries
from fedspeech.corpus.partition import Client, client, too_little
from fedspeech.device.voice import TRAIN
from fedspeech.errors import CorpusError
from fedspeech.tensors import write_whole

TEST, CUT = "test.jsonl", "cut.json"


def cut(
    speech: Path,
    folder: Path,
    settings: PartitionSettings,
    anew: bool,
    channel: int | None = None,
) -> None:
    """Write train.jsonl and test.jsonl of a device's folder, from a folder of recordings; `channel`
    is taken of those that have several.

    They stay as they are within a run: what was said in its beginning is what it is judged by, even
    where the owner has gone on recording. `cut.json` comes last and says by which settings they
    were cut. Raises CorpusError where there is too little usable speech.
    """
    said = {"train": settings.train.model_dump(mode="json"), "seconds": settings.least_seconds}
    said["channel"] = channel
    if not anew and _cut_before(folder) == said:
        return
    usable = [one.cut for one in check(entries(speech, channel)) if one.cut is not None]
    parts = client("owner", usable, settings.train)
    if (lacking := too_little(parts, settings)) is not None:
        raise CorpusError(
            f"{speech}: {lacking}; {command(speech, channel)} says what is wrong with it"
        )
    _write(folder, parts)
    text = json.dumps(said) + "\n"
    write_whole(folder / CUT, lambda part: part.write_text(text, encoding="utf-8"))


def _cut_before(folder: Path) -> object:
    try:
        return json.loads((folder / CUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(folder: Path, parts: Client) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CUT).unlink(missing_ok=True)
    write(folder / TRAIN, parts.train)
    write(folder / TEST, parts.test)
