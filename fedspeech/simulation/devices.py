"""The folders of simulated devices: each holds one speaker's speech, and is all that speaker's."""

import json
from collections.abc import Sequence
from pathlib import Path

from fedspeech.corpus.cuts import write
from fedspeech.corpus.partition import Client, pseudonym
from fedspeech.tensors import write_whole

ABOUT = "device.json"


def lay_out(clients: Sequence[Client], folder: Path, seed: int) -> None:
    """Write one device folder per client under `folder`, by the speakers' pseudonyms.

    `device.json` comes last: where it is, the folder is whole.
    """
    for client in clients:
        name = pseudonym(seed, client.speaker)
        device = folder / name
        if (device / ABOUT).exists():
            continue
        for part, cuts in (("train", client.train), ("test", client.test)):
            # A worker may run in another folder than the one that a relative path starts from.
            write(device / f"{part}.jsonl", cuts)
        # Where the devices of one machine share the file of G.
        about = {"speaker": name, "pool": "../pool"}
        _write_text(device / ABOUT, json.dumps(about) + "\n")


def folders(folder: Path) -> list[Path]:
    """The device folders under `folder`, in the order of the speakers' ids."""
    return sorted(about.parent for about in folder.glob(f"*/{ABOUT}"))


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
