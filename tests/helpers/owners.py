"""Speech as boxes hold it, and experiments on tone words for a run with them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TONES = """
name = "tones"
[corpus]
path = {corpus}
[partition]
generic = 3
development = 1
train = {{ field = "round", values = [1, 2, 3] }}
[units]
kind = "words"
[model]
name = "{model}"
[generic]
epochs = 1
threads = 1
{generic}
[personal]
epochs = 1
[federation]
bases = ["{base}"]
alphas = [0.0, 0.5, 1.0]
deployment = {{ boxes = {boxes}, wait = 300.0, deadline = {deadline} }}
{more}
"""


def tones(public: Path, boxes: int, base: str, **settings: Any) -> str:
    """An experiment on a server's tone corpus, with the smallest model, an epoch of each training.

    `settings` are model, deadline, lines of `generic`, and `more` sections.
    """
    usual = {"model": "tdnn-tiny", "deadline": 3600.0, "generic": "", "more": ""}
    corpus = json.dumps(str(public))
    return TONES.format(corpus=corpus, boxes=boxes, base=base, **{**usual, **settings})


def rows(corpus: Path) -> list[dict[str, Any]]:
    """The lines of a corpus's manifest, with the absolute paths of their audio."""
    lines = (corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [{**row, "audio": str(corpus / row["audio"])} for row in map(json.loads, lines)]


def hand(folder: Path, speech: Iterable[Mapping[str, Any]]) -> Path:
    """Write some rows as the manifest of a new folder."""
    folder.mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in speech)
    (folder / "manifest.jsonl").write_text(text, encoding="utf-8")
    return folder
