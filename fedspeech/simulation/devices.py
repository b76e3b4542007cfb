"""The folders of simulated devices: each holds one speaker's speech, and is all that speaker's."""

import json
from collections.abc import Sequence
from pathlib import Path

from fedspeech.corpus.cuts import write
from fedspeech.corpus.partition import Client, pseudonym
from fedspeech.tensors import sha256_of_file, write_whole

ABOUT = "device.json"


def lay_out(clients: Sequence[Client], folder: Path, seed: int) -> None:
    """Write one device folder per client under `folder`, by the speakers' pseudonyms.

    `device.json` comes last, with the SHA-256 of what is beside it: a folder that is whole stays as
    it is.
    """
    for client in clients:
        name = pseudonym(seed, client.speaker)
        device = folder / name
        if not _is_whole(device, name):
            speech = {"train.jsonl": client.train, "test.jsonl": client.test}
            for file, cuts in speech.items():
                # A worker may run in another folder than the one that a relative path starts from.
                write(device / file, cuts)
            written = {file: sha256_of_file(device / file) for file in speech}
            # Where the devices of one machine share the file of G.
            about = {"speaker": name, "pool": "../pool", "files": written}
            _write_text(device / ABOUT, json.dumps(about) + "\n")


def _is_whole(device: Path, name: str) -> bool:
    try:
        about = json.loads((device / ABOUT).read_text(encoding="utf-8"))
        files = dict(about["files"])
        return about["speaker"] == name and files == {
            file: sha256_of_file(device / file) for file in files
        }
    except (OSError, ValueError, TypeError, KeyError):
        return False


def folders(folder: Path) -> list[Path]:
    """The device folders under `folder`, in the order of the speakers' ids."""
    return sorted(about.parent for about in folder.glob(f"*/{ABOUT}"))


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
