"""A corpus as folders: one for the server, and one for each client as its box would hold it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import soundfile
from lhotse import MonoCut

from fedspeech.corpus.cuts import SAMPLE_RATE, samples, speaker_of, text_of
from fedspeech.corpus.partition import Partition
from fedspeech.errors import DiskError
from fedspeech.tensors import write_whole

PUBLIC, MANIFEST, AUDIO = "public", "manifest.jsonl", "audio"


def hand_out(partition: Partition, folder: Path) -> Iterator[tuple[Path, int]]:
    """Write `public`, with all that trains and develops G, and a folder for each client.

    Each has a manifest and its audio as 16-bit WAV files of 16 kHz, numbered: no name is in a
    file's. Yields each folder and its number of utterances once it is whole. Raises DiskError where
    it cannot be written.
    """
    public = [*partition.generic, *partition.development]
    yield _write(folder / PUBLIC, public)
    for client in partition.clients:
        yield _write(folder / client.speaker, [*client.train, *client.test])


def _write(folder: Path, cuts: Sequence[MonoCut]) -> tuple[Path, int]:
    digits = len(str(len(cuts)))
    try:
        (folder / AUDIO).mkdir(parents=True, exist_ok=True)
        rows = []
        for number, cut in enumerate(cuts):
            audio = f"{AUDIO}/{number:0{digits}}.wav"
            soundfile.write(folder / audio, samples(cut).numpy(), SAMPLE_RATE, "PCM_16")
            rows.append(_row(cut, audio))
    except (OSError, soundfile.LibsndfileError) as error:
        raise DiskError(f"{folder}: cannot write there: {error}") from None
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(folder / MANIFEST, lambda part: part.write_text(text, encoding="utf-8"))
    return folder, len(cuts)


def _row(cut: MonoCut, audio: str) -> dict[str, Any]:
    fields = cut.supervisions[0].custom or {}
    own = {"id": cut.id, "speaker": speaker_of(cut), "audio": audio, "text": text_of(cut)}
    return {**fields, **own}
