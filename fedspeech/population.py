"""The personal models of all speakers, on disk: read one tensor at a time, never all at once."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from fedspeech import tensors
from fedspeech.diff.apply import apply
from fedspeech.tensors import Tensors, TensorStream

BLOCK_VALUES = 2**22
"""Values of all speakers together that a distance holds in memory at a time."""
LEAST_DISTANCE = 1e-6
"""Of what two models differ from G; less is rounding."""


class Population:
    """G in `generic.safetensors` and P_s in `personal/SPEAKER.safetensors` under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._total: tuple[tuple[str, ...], Tensors] | None = None

    @property
    def generic_path(self) -> Path:
        """The file of G."""
        return self.folder / "generic.safetensors"

    def personal_path(self, speaker: str) -> Path:
        """The file of P_s."""
        return self.folder / "personal" / f"{speaker}.safetensors"

    def diff_path(self, speaker: str) -> Path:
        """The file of the diff from G to P_s."""
        return self.folder / "personal" / f"{speaker}.diff"

    def pushed(self, speaker: str) -> Path:
        """The folder of the line of what was pushed to a speaker's device."""
        return self.folder / "pushed" / speaker

    def generic(self) -> TensorStream:
        """G as a stream."""
        return tensors.stream(self.generic_path)

    def personal(self, speaker: str) -> TensorStream:
        """P_s as a stream."""
        return tensors.stream(self.personal_path(speaker))

    def difference(self, speaker: str) -> Tensors:
        """P_s - G, which with G gives P_s again: to the bit where a value has at most doubled or
        halved, else but for rounding.
        """
        return dict(tensors.subtract(self.personal(speaker), dict(self.generic())))

    def keep(self, speaker: str, difference: Tensors) -> None:
        """Write G + difference as P_s. Raises ModelError unless it is finite and fits G."""
        generic = dict(self.generic())
        tensors.check_like(difference, generic)
        self.diff_path(speaker).unlink(missing_ok=True)
        self._write(speaker, dict(tensors.add(generic.items(), difference)))

    def keep_diff(self, speaker: str, data: bytes) -> None:
        """Write what a diff makes of G as P_s, and the diff beside it.

        Raises ModelError unless it is finite, DiffError as `fedspeech.diff.apply` does, also where
        it does not fit G.
        """
        generic = dict(self.generic())
        model = apply(generic, data, alike=True)
        tensors.check_like(model, generic)
        tensors.write_whole(self.diff_path(speaker), lambda part: part.write_bytes(data))
        self._write(speaker, model)

    def _write(self, speaker: str, model: Tensors) -> None:
        tensors.write(self.personal_path(speaker), model)
        self._total = None

    def diff(self, speaker: str) -> bytes | None:
        """The diff from G to P_s, where that is how P_s came."""
        try:
            return self.diff_path(speaker).read_bytes()
        except FileNotFoundError:
            return None

    def total(self, speakers: Sequence[str]) -> TensorStream:
        """The sum of some personal models in float64, kept for the next time."""
        if self._total is None or self._total[0] != tuple(speakers):
            self._total = tuple(speakers), dict(self._sum(speakers))
        return iter(sorted(self._total[1].items()))

    def _sum(self, speakers: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
        streams = [self.personal(speaker) for speaker in speakers]
        for items in zip(*streams, strict=True):
            total = items[0][1].double()
            for _, tensor in items[1:]:
                total += tensor
            yield items[0][0], total

    def distances(self, speakers: Sequence[str], names: Sequence[str]) -> np.ndarray:
        """Euclidean distances between personal models on the named tensors.

        float64 (speakers, speakers), by |a - b|^2 = |a|^2 + |b|^2 - 2 a.b, which one matrix product
        gives for all pairs. Taken on the differences from G, which are small: the squares of whole
        weights would cancel. What is left of cancelling below 1e-6 of the models' own distances
        from G is zero.
        """
        products = torch.zeros(len(speakers), len(speakers), dtype=torch.float64)
        width = max(1, BLOCK_VALUES // len(speakers))
        for name in names:
            generic = torch.split(_flat(self.generic_path, name), width)
            # Mapped from the files: what is in memory is one block of each.
            personal = [
                torch.split(_flat(self.personal_path(speaker), name), width) for speaker in speakers
            ]
            for g, *blocks in zip(generic, *personal, strict=True):
                rows = torch.stack([block.double() - g for block in blocks])
                products.addmm_(rows, rows.T)
        norms = products.diagonal()
        both = norms[:, None] + norms
        squares = both - 2 * products
        squares = torch.where(squares > both * LEAST_DISTANCE**2, squares, 0.0)
        squares.fill_diagonal_(0.0)
        return np.asarray(squares.sqrt().numpy())


def _flat(path: Path, name: str) -> torch.Tensor:
    ((_, tensor),) = tensors.stream(path, [name])
    return tensor.flatten()
