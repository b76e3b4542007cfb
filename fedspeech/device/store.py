"""What a device keeps on its own disk: the models it holds, by their role and their hash."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedspeech import tensors
from fedspeech.errors import ModelError
from fedspeech.tensors import Tensors, sha256, write, write_whole

GENERIC, DIFFERENCE, BASE, VALIDATION = "generic", "difference", "base", "validation"
"""Roles: G; P_s - G; the installed M_s; and what judges alpha (fine-tuned on part of train_s)."""


class Store:
    """A folder with one safetensors file per model, and `state.json`, which says what is what.

    A model is written under its hash before `state.json` names it, so that a device that is killed
    holds the old one or the new one. Simulated devices on one machine share the file of G through
    `pool`, a folder of models by hash.
    """

    def __init__(self, folder: Path, pool: Path | None = None) -> None:
        self.folder, self.pool = folder, pool
        self._path = folder / "state.json"

    def put(self, role: str, model: Tensors, **notes: Any) -> str:
        """Keep a model in a role instead of what was there, and notes with it; its hash.

        Raises RunError where the disk does not take it; then the old one is still there.
        """
        return self.put_together({role: model}, **notes)[role]

    def put_together(self, models: Mapping[str, Tensors], **notes: Any) -> dict[str, str]:
        """`put` for models that belong to each other: all of them or, killed, none; the hashes."""
        names = {role: sha256(model) for role, model in models.items()}
        for role, name in names.items():
            if not _intact(self._file(name), name):
                pool = self.pool if role == GENERIC else None
                write_shared(self._file(name), models[role], pool)
        self.note(**names, **notes)
        self._forget_unnamed()
        return names

    def get(self, role: str) -> Tensors:
        """The model in a role. Raises ModelError where there is none or it is damaged."""
        name = self.hash(role)
        if name is None:
            raise ModelError(f"{self.folder}: this device holds no {role} model")
        model = tensors.read(self._file(name))
        if sha256(model) != name:
            raise ModelError(f"{self._file(name)}: the {role} model is damaged (its hash differs)")
        return model

    def hash(self, role: str) -> str | None:
        """The hash of the model in a role, or None."""
        name = self.state().get(role)
        return name if name is not None and self._file(name).exists() else None

    def holds(self, role: str) -> bool:
        """Whether the model in a role is there and undamaged; reads it whole."""
        name = self.hash(role)
        return name is not None and _intact(self._file(name), name)

    def note(self, **notes: Any) -> None:
        """Keep what JSON can say, by its name, all in one step."""
        text = json.dumps({**self.state(), **notes}, sort_keys=True, indent=1) + "\n"
        write_whole(self._path, lambda part: part.write_text(text, encoding="utf-8"))

    def state(self) -> dict[str, Any]:
        """All that was noted. Raises ModelError where it is damaged."""
        try:
            return dict(json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"{self._path}: not readable: {error}") from None

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _forget_unnamed(self) -> None:
        """Remove what no role names, and what a killed process left unfinished."""
        state = self.state()
        named = {state.get(role) for role in (GENERIC, DIFFERENCE, BASE, VALIDATION)}
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob(".*.part")]:
            if path.stem not in named:
                path.unlink(missing_ok=True)


def write_shared(path: Path, model: Tensors, pool: Path | None) -> None:
    """Write a model, named by its hash, as a link to the one file in `pool` where there is one.

    Raises RunError where the disk does not take it.
    """
    if pool is None:
        write(path, model)
        return
    shared = pool / path.name
    if not _intact(shared, path.stem):
        write(shared, model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.link(shared, path)
    except OSError:  # the pool is on another disk
        write(path, model)


def _intact(path: Path, name: str) -> bool:
    """Whether the model with this hash is in the file."""
    try:
        return path.exists() and sha256(tensors.read(path)) == name
    except ModelError:
        return False
