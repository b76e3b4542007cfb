"""The folders of simulated devices: each holds one speaker's speech, and is all that speaker's."""

import json
from collections.abc import Sequence
from pathlib import Path

from lhotse import CutSet

from fedspeech.corpus.partition import Client, pseudonym
from fedspeech.tensors import write_whole


def lay_out(clients: Sequence[Client], folder: Path, seed: int) -> list[str]:
    """Write one device folder per client under `folder`; the pseudonyms in their order.

    `device.json` comes last: where it is, the folder is whole.
    """
    names = {pseudonym(seed, client.speaker): client for client in clients}
    for name, client in sorted(names.items()):
        device = folder / name
        if (device / "device.json").exists():
            continue
        for part, cuts in (("train", client.train), ("test", client.test)):
            _write_cuts(device / f"{part}.jsonl", CutSet.from_cuts(cuts))
        about = json.dumps({"speaker": name, "pool": str((folder / "pool").absolute())}) + "\n"
        _write_text(device / "device.json", about)
    return sorted(names)


def _write_cuts(path: Path, cuts: CutSet) -> None:
    lines = [json.dumps(cut.to_dict(), ensure_ascii=False) + "\n" for cut in cuts]
    _write_text(path, "".join(lines))


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
