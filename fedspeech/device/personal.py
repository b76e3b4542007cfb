"""The model that a device's owner is recognized with: what was installed last, whole.

A run changes G, P_s and M_s one after the other, and it may end in between. So their mix is made
where M_s is installed, and kept with what it needs until the next one takes its place.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedspeech import tensors
from fedspeech.device import voice
from fedspeech.device.store import (
    BASE,
    DESCRIPTION,
    DIFFERENCE,
    DIFFERENCE_FROM,
    GENERIC,
    MODELS,
    PREVIOUS,
    RECOGNIZER,
    STATE,
    Store,
)
from fedspeech.errors import ModelError
from fedspeech.features import Normalization
from fedspeech.tensors import Tensors

ALPHA = "alpha"
"""Note of the weight of P_s in the recognizer: 0 where what was installed is a mix already."""
HEARS = "hears"
"""Note of what the recognizer needs besides: its description, and how its speaker sounds."""


class Usual(NamedTuple):
    """A model to recognize the owner with, and what belongs to it."""

    model: Tensors
    about: str
    """In words, which one it is."""
    description: Mapping[str, Any]
    normalization: Normalization | None = None
    """As it was when the model was installed; None where it was not, or needs none."""


def open_store(folder: Path) -> Store:
    """Of a device's folder, or of the one in it where the models are.

    Raises ModelError where there is none.
    """
    for place in (folder / MODELS, folder):
        if (place / STATE).exists():
            return Store(place)
    raise ModelError(f"{folder}: no device's models here; expected {MODELS}/{STATE} or {STATE}")


def install(store: Store, alpha: float, normalization: Normalization | None) -> str:
    """Let alpha * P_s + (1 - alpha) * M_s of what is held be the recognizer; its hash.

    It takes the place of the one before in one step, with G's description and the normalization of
    its speaker. Raises ModelError where P_s or M_s is not held or damaged.
    """
    hears = {
        "description": store.state().get(DESCRIPTION, {}),
        "normalization": None if normalization is None else voice.to_json(normalization),
    }
    return store.put(RECOGNIZER, _mix(store, alpha), **{ALPHA: alpha, HEARS: hears})


def _mix(store: Store, alpha: float) -> Tensors:
    base = store.get(BASE)
    if alpha == 0:
        return base
    generic = sorted(store.get(GENERIC).items())
    personal = tensors.add(generic, store.get(DIFFERENCE))
    return dict(tensors.interpolate(personal, sorted(base.items()), alpha))


def usual(store: Store) -> Usual:
    """The recognizer; before one is installed P_s, where that is held, else G.

    Raises ModelError where nothing is held, or what is needed is damaged.
    """
    state = store.state()
    if store.hash(RECOGNIZER) is not None:
        hears, alpha = state[HEARS], state[ALPHA]
        kept = hears["normalization"]
        normalization = None if kept is None else voice.from_json(kept)
        return Usual(store.get(RECOGNIZER), _words(alpha), hears["description"], normalization)
    description = state.get(DESCRIPTION, {})
    if (difference := store.hash(DIFFERENCE)) is None:
        return Usual(store.get(GENERIC), "G", description)
    generic = str(state.get(DIFFERENCE_FROM))
    if not store.file(generic).exists():
        return Usual(store.get(GENERIC), "G", description)
    model = dict(tensors.add(_whole(store, generic).items(), _whole(store, difference)))
    if generic != state.get(GENERIC):  # it is of the G before, which is kept for `rollback`
        description = state.get(PREVIOUS, {}).get(GENERIC, {}).get(DESCRIPTION, description)
    return Usual(model, "P_s", description)


def _words(alpha: float) -> str:
    if alpha in (0, 1):
        return "P_s" if alpha else "M_s"
    return f"{alpha:g} * P_s + {1 - alpha:g} * M_s"


def _whole(store: Store, name: str) -> Tensors:
    model = tensors.read(store.file(name))
    if tensors.sha256(model) != name:
        raise ModelError(f"{store.file(name)}: the model is damaged (its hash differs)")
    return model
