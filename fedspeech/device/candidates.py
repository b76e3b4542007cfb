"""Other speakers' models that wait on a device's disk until the race between them has ended."""

from collections.abc import Collection
from functools import partial
from pathlib import Path

from fedspeech import tensors
from fedspeech.device.store import Store, write_shared
from fedspeech.errors import ModelError
from fedspeech.tensors import Tensors, sha256

RACE, HELD = "race", "held"
"""Under the first of these names a device's store notes how far a race is, or how the last one
ended; under the other, in it, which candidates are on the disk."""


def of(store: Store) -> "Candidates":
    """Those of a device."""
    return Candidates(store.folder / "candidates", store.pool)


class Candidates:
    """A folder with one safetensors file per difference P - G, named by its hash.

    Simulated devices on one machine share these files, as they share that of G, through `pool`.
    """

    def __init__(self, folder: Path, pool: Path | None = None) -> None:
        self.folder, self._pool = folder, pool

    def hold(self, name: str, difference: Tensors) -> None:
        """Keep a difference under its hash. Raises RunError where the disk does not take it."""
        if not tensors.intact(self.file(name), name):
            save = partial(tensors.write, tensors=difference)
            write_shared(self.file(name), save, self._pool)

    def get(self, name: str) -> Tensors:
        """The difference with this hash. Raises ModelError where it is missing or damaged."""
        found = tensors.read(self.file(name))
        if sha256(found) != name:
            raise ModelError(f"{self.file(name)}: the model is damaged (its hash differs)")
        return found

    def hold_only(self, names: Collection[str]) -> None:
        """Let go of all others, and of what a killed process left unfinished."""
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob(".*.part")]:
            if path.stem not in names:
                path.unlink(missing_ok=True)
                self._let_go(path.name)

    def _let_go(self, name: str) -> None:
        """Remove a file of the pool that no device links to any more."""
        shared = self._pool / name if self._pool else None
        try:
            if shared and shared.stat().st_nlink == 1:
                shared.unlink()
        except FileNotFoundError:  # another device let go of it at the same moment
            pass

    def file(self, name: str) -> Path:
        """Where the difference with this hash is, if it is here."""
        return self.folder / f"{name}.safetensors"
