"""What a device keeps on its own disk: the models it holds, by their role and their hash."""

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fedspeech import tensors
from fedspeech.diff import wire
from fedspeech.diff.apply import apply_files
from fedspeech.errors import DiffError, ModelError
from fedspeech.tensors import Tensors, intact, sha256, write, write_whole

GENERIC, DIFFERENCE, BASE, VALIDATION = "generic", "difference", "base", "validation"
RECOGNIZER = "recognizer"
ROLES = GENERIC, DIFFERENCE, BASE, VALIDATION, RECOGNIZER
"""Roles: G; P_s - G; the installed M_s; what judges alpha (fine-tuned on part of train_s); and the
mix of P_s and M_s that the owner is recognized with."""
KEPT = GENERIC, RECOGNIZER
"""Roles whose model stays for `rollback` when another one comes."""
PREVIOUS, DIFFERENCE_FROM = "previous", "difference_from"
"""Notes of the store itself: what was noted before a role's last update, and P_s - G of which G."""
DESCRIPTION = "description"
"""Note of those who keep G: what it needs to be used."""
STATE, MODELS = "state.json", "models"
"""What says which model is what, and where in a device's folder the models are."""
HASH = re.compile("[0-9a-f]{64}")


class Store:
    """A folder with one safetensors file per model, and `state.json`, which says what is what.

    A model is written under its hash before `state.json` names it, so that a device that is killed
    holds the old one or the new one. Simulated devices on one machine share the file of G through
    `pool`, a folder of models by hash.
    """

    def __init__(self, folder: Path, pool: Path | None = None) -> None:
        self.folder, self.pool = folder, pool
        self._path = folder / STATE

    def put(self, role: str, model: Tensors, **notes: Any) -> str:
        """Keep a model in a role instead of what was there, and notes with it; its hash.

        What was there of G and the recognizer stays, with what these notes said before, for
        `rollback`. Raises DiskError where the disk does not take it; then nothing changes.
        """
        return self.put_together({role: model}, **notes)[role]

    def put_together(self, models: Mapping[str, Tensors], **notes: Any) -> dict[str, str]:
        """`put` for models that belong to each other: all of them or, killed, none; the hashes."""
        names = {role: sha256(model) for role, model in models.items()}
        for role, name in names.items():
            if not intact(self.file(name), name):
                save = partial(write, tensors=models[role])
                write_shared(self.file(name), save, self._pool(role))
        self._take(names, notes)
        return names

    def update(
        self,
        role: str,
        *diffs: bytes,
        check: Callable[[Path], object] = lambda _: None,
        **notes: Any,
    ) -> str:
        """Put the model that a diff, or a chain of them, gives in a role, and notes with it; its
        hash.

        The first diff is for the model in that role or for another one that is held: M_s may come
        as a diff from G. What was there of G stays, as `put` has it; what a chain passes through is
        never held. `check` sees the new model's file before it is named, and raises ModelError to
        refuse it. Raises DiffError where a diff is damaged or for a model that is not held,
        ModelError where that model is damaged, DiskError where the disk does not take the new one;
        then nothing changes.
        """
        old, result = self.base_of(role, diffs[0]), wire.result_of(diffs[-1])
        try:
            write_shared(self.file(result), partial(apply_files, old, diffs), self._pool(role))
        except DiffError:
            self._check(old.stem, role)
            raise
        try:
            check(self.file(result))
        except ModelError:
            self._forget_unnamed()
            raise
        self._take({role: result}, notes)
        return result

    def base_of(self, role: str, data: bytes) -> Path:
        """The file of the model that a diff is for. Raises DiffError where it is not held."""
        base, held = wire.base_of(data), self.hash(role)
        if not (old := self.file(base)).exists():
            here = f"the {role} model here is {held}" if held else f"there is no {role} model here"
            raise DiffError(f"the diff is for the model {base}, and {here}")
        return old

    def _take(self, names: Mapping[str, str], notes: Mapping[str, Any]) -> None:
        """Name what was written, and what was there before, all in one step."""
        state = self.state()
        kept = dict(state.get(PREVIOUS, {}))
        for role, name in names.items():
            held = self.hash(role)
            if name == held:  # killed before it answered, a device is sent the same again
                continue
            kept.pop(role, None)
            if held is not None and role in KEPT:
                kept[role] = {key: state.get(key) for key in (role, *notes)}
        changes = {**names, **notes}
        if DIFFERENCE in names:
            changes[DIFFERENCE_FROM] = {**state, **names}.get(GENERIC)
        if kept or PREVIOUS in state:
            changes[PREVIOUS] = kept
        self.note(**changes)
        self._forget_unnamed()

    def rollback(self, role: str) -> str:
        """Go back to what was in a role, and to its notes, before the last update; its hash.

        Raises ModelError where there is nothing to go back to, or it is damaged.
        """
        state = self.state()
        kept = dict(state.get(PREVIOUS, {}))
        if (before := kept.pop(role, None)) is None:
            raise ModelError(f"{self.folder}: there is no {role} model to go back to")
        self._check(before[role], role)
        self.note(**{**before, PREVIOUS: kept})
        self._forget_unnamed()
        return str(before[role])

    def previous(self, role: str) -> str | None:
        """The hash of the model that `rollback` would go back to, or None."""
        before = self.state().get(PREVIOUS, {}).get(role)
        return None if before is None else str(before[role])

    def get(self, role: str) -> Tensors:
        """The model in a role.

        Raises ModelError where there is none, it is damaged, or it is P_s - G of another G.
        """
        name = self.hash(role)
        if name is None:
            raise ModelError(f"{self.folder}: this device holds no {role} model")
        if role == DIFFERENCE and not self.fits():
            of, generic = (str(self.state().get(key))[:12] for key in (DIFFERENCE_FROM, GENERIC))
            raise ModelError(
                f"{self.folder}: P_s is kept as a difference from {of}, and G is {generic}"
            )
        model = tensors.read(self.file(name))
        if sha256(model) != name:
            raise _damaged(self.file(name), role)
        return model

    def fits(self) -> bool:
        """Whether what is kept of P_s is its difference from the G that is held."""
        state = self.state()
        return bool(state.get(DIFFERENCE_FROM) == state.get(GENERIC))

    def _check(self, name: str, role: str) -> None:
        if not intact(self.file(name), name):
            raise _damaged(self.file(name), role)

    def hash(self, role: str) -> str | None:
        """The hash of the model in a role, or None."""
        name = self.state().get(role)
        return name if name is not None and self.file(name).exists() else None

    def holds(self, role: str) -> bool:
        """Whether the model in a role is there and undamaged; reads it whole.

        P_s - G of another G is not.
        """
        name = self.hash(role)
        if name is None or (role == DIFFERENCE and not self.fits()):
            return False
        return intact(self.file(name), name)

    def lost(self) -> list[Path]:
        """The files of the models in all roles that are missing or damaged; reads them whole."""
        state = self.state()
        named = [str(state[role]) for role in ROLES if state.get(role) is not None]
        return [self.file(name) for name in named if not intact(self.file(name), name)]

    def note(self, **notes: Any) -> None:
        """Keep what JSON can say, by its name, all in one step."""
        text = json.dumps({**self.state(), **notes}, sort_keys=True, indent=1) + "\n"
        write_whole(self._path, lambda part: part.write_text(text, encoding="utf-8"))

    def state(self) -> dict[str, Any]:
        """All that was noted. Raises ModelError where it is damaged."""
        try:
            state = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ModelError(f"{self._path}: not readable: {error}") from None
        if (wrong := _wrong(state)) is not None:
            raise ModelError(f"{self._path}: {wrong}")
        return dict(state)

    def _pool(self, role: str) -> Path | None:
        """Only G is everybody's."""
        return self.pool if role == GENERIC else None

    def file(self, name: str) -> Path:
        """Where the model with this hash is, if it is held."""
        return self.folder / f"{name}.safetensors"

    def _forget_unnamed(self) -> None:
        """Remove what no role names, and what a killed process left unfinished."""
        state = self.state()
        before = state.get(PREVIOUS, {})
        named = {*map(state.get, ROLES), *(was[role] for role, was in before.items())}
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob(".*.part")]:
            if path.stem not in named:
                path.unlink(missing_ok=True)


def write_shared(path: Path, save: Callable[[Path], object], pool: Path | None) -> None:
    """Let `save` write a model, named by its hash; with a pool there, once, for all to link to.

    Raises what `save` raises.
    """
    if pool is None:
        save(path)
        return
    shared = pool / path.name
    if not intact(shared, path.stem):
        save(shared)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.link(shared, path)
    except OSError:  # the pool is on another disk
        save(path)


def _wrong(state: object) -> str | None:
    """What in a device's state cannot be, or None."""
    if not isinstance(state, dict):
        return f"expected an object, found {state!r:.60}"
    before = state.get(PREVIOUS, {})
    if not isinstance(before, dict) or not before.keys() <= set(ROLES):
        return f"{PREVIOUS}: expected an object with some of {', '.join(ROLES)}, {_found(before)}"
    names = {key: state.get(key) for key in (*ROLES, DIFFERENCE_FROM)}
    for role, notes in before.items():
        if not isinstance(notes, dict) or role not in notes:
            return f"{PREVIOUS}.{role}: expected an object that names a {role}, {_found(notes)}"
        names[f"{PREVIOUS}.{role}.{role}"] = notes[role] or ""
    for key, name in names.items():
        if name is not None and not (isinstance(name, str) and HASH.fullmatch(name)):
            return f"{key}: expected a SHA-256 in hexadecimal digits, {_found(name)}"
    return None


def _found(value: object) -> str:
    return f"found {value!r:.60}"


def _damaged(path: Path, role: str) -> ModelError:
    return ModelError(f"{path}: the {role} model is damaged (its hash differs)")
