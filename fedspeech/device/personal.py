"""The model that a device's owner uses: alpha * P_s + (1 - alpha) * M_s, of what is held."""

from pathlib import Path

from fedspeech import tensors
from fedspeech.device.store import BASE, DIFFERENCE, DIFFERENCE_FROM, GENERIC, MODELS, STATE, Store
from fedspeech.errors import ModelError
from fedspeech.tensors import Tensors

ALPHA = "alpha"
"""Note of the weight of P_s that this device took when M_s was installed: 0 where what was
installed is a mix already."""


def open_store(folder: Path) -> Store:
    """Of a device's folder, or of the one in it where the models are.

    Raises ModelError where there is none.
    """
    for place in (folder / MODELS, folder):
        if (place / STATE).exists():
            return Store(place)
    raise ModelError(f"{folder}: no device's models here; expected {MODELS}/{STATE} or {STATE}")


def usual(store: Store) -> tuple[Tensors, str]:
    """The model to recognize the owner with, and in words what it is.

    The mix where a P_s, an installed M_s and an alpha are held; else P_s, else M_s, else G. Raises
    ModelError where nothing is held, or what is needed is damaged.
    """
    alpha, base = store.state().get(ALPHA), store.hash(BASE)
    if base is not None and alpha == 0:
        return store.get(BASE), "M_s"
    personal = _personal(store)
    if personal is None:
        role, name = (BASE, "M_s") if base is not None else (GENERIC, "G")
        return store.get(role), name
    if base is None or alpha is None or alpha == 1:
        return personal, "P_s"
    mix = tensors.interpolate(sorted(personal.items()), sorted(store.get(BASE).items()), alpha)
    return dict(mix), f"{alpha:g} * P_s + {1 - alpha:g} * M_s"


def _personal(store: Store) -> Tensors | None:
    """P_s: its difference from G added to the G that it is from, which `rollback` may keep."""
    if (difference := store.hash(DIFFERENCE)) is None:
        return None
    generic = str(store.state().get(DIFFERENCE_FROM))
    if not store.file(generic).exists():
        return None
    return dict(tensors.add(_whole(store, generic).items(), _whole(store, difference)))


def _whole(store: Store, name: str) -> Tensors:
    model = tensors.read(store.file(name))
    if tensors.sha256(model) != name:
        raise ModelError(f"{store.file(name)}: the model is damaged (its hash differs)")
    return model
