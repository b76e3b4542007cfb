"""A release of G from a file: how a device goes on that no server reaches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedspeech import tensors
from fedspeech.device import trust
from fedspeech.device.lock import locked
from fedspeech.device.store import DESCRIPTION, GENERIC, MODELS, STATE, Store
from fedspeech.diff import files, wire
from fedspeech.errors import ModelError
from fedspeech.models.description import ModelDescription

WHOLE = ".safetensors"


def update(
    folder: Path,
    file: Path,
    statements: Sequence[str] = (),
    description: Mapping[str, Any] | None = None,
) -> str:
    """Let a device take the G in a file, a diff from one that it holds or a whole model; its hash.

    Its description is the one of the G that is held, where no other comes with it. Raises
    SignatureError as `trust.check` does, DiffError where the diff is damaged or for another model,
    ModelError where the model does not fit its description or there is none, RunError where another
    process is at work, DiskError where the disk does not take it; then the models stay as they are.
    """
    if (folder / STATE).exists():
        raise ModelError(f"{folder}: expected the folder of a device, not that of its models")
    store, whole = Store(folder / MODELS), file.suffix == WHOLE
    if not whole and not (store.folder / STATE).exists():
        raise ModelError(f"{folder}: no device's models here; the first one comes as a whole")
    tensors.private_folder(folder)
    with locked(store.folder, wait=False):
        about = description or store.state().get(DESCRIPTION)
        if about is None:
            raise ModelError(f"{file}: what this model needs is not known; expected a description")
        notes, described = {DESCRIPTION: about}, ModelDescription.from_json(about)
        if whole:
            model = tensors.read(file)
            described.check(model)
            trust.check(folder, statements, tensors.sha256(model), about)
            return store.put(GENERIC, model, **notes)
        data = files.read(file)
        store.base_of(GENERIC, data)  # or what comes before it would be older than what was refused
        trust.check(folder, statements, wire.result_of(data), about)
        return store.update(
            GENERIC, data, check=lambda new: described.check(tensors.read(new)), **notes
        )
