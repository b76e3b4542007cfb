"""Arrays of a Flower record that stay on disk: a strategy reads one when it takes it up.

Flower's strategies are given all replies of a round at once. In memory those of 400 clients with 14
million parameters would take 23 GB; a strategy that adds up one after another, as FedAvg does, now
holds one tensor of one reply.
"""

from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord

from fedspeech import tensors


def stored(path: Path) -> ArrayRecord:
    """A safetensors file as a Flower record, in the order of the names.

    Raises ModelError where the file is missing or damaged.
    """
    record = ArrayRecord()
    for name, like in tensors.stream(path):
        record[name] = StoredArray(path, name, like)  # made of all at once it would copy them
    return record


class StoredArray(Array):
    """An array whose bytes are read from a safetensors file each time that they are asked for."""

    def __init__(self, path: Path, name: str, like: torch.Tensor) -> None:
        self._path, self._name = path, name
        self.shape, self.stype = tuple(like.shape), "numpy.ndarray"
        self.dtype = str(like.numpy().dtype)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """Serialized as Flower does it. Raises ModelError where the file is damaged."""
        ((_, tensor),) = tensors.stream(self._path, [self._name])
        return Array(tensor.numpy()).data
