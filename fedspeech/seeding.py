"""Every random draw of the platform comes from here.

A draw is named by what it is for, never by when it happens: (seed, round, speaker, purpose). So the
order in which workers finish cannot change a result, and a message that is tried again gives the
same answer.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def key(seed: int, round: int, speaker: str, purpose: str) -> int:
    """A 63-bit integer that follows from the four names (SHA-256)."""
    name = json.dumps([seed, round, speaker, purpose]).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "little") >> 1


def generator(seed: int, round: int, speaker: str, purpose: str) -> np.random.Generator:
    """A NumPy generator (PCG64) for this purpose."""
    return np.random.default_rng(key(seed, round, speaker, purpose))


class Draws:
    """PyTorch's own generators for one purpose, taken up and put aside: many may go by turns."""

    def __init__(self, seed: int, round: int, speaker: str, purpose: str) -> None:
        self._key = key(seed, round, speaker, purpose)
        self._states: list[torch.Tensor] | None = None

    @contextmanager
    def taken_up(self) -> Iterator[None]:
        """Within the block PyTorch draws from here, from where it was put aside last."""
        with torch.random.fork_rng():
            if self._states is None:
                torch.manual_seed(self._key)
            else:
                torch.set_rng_state(self._states[0])
                torch.cuda.set_rng_state_all(self._states[1:])
            yield
            self._states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]


@contextmanager
def scoped(seed: int, round: int, speaker: str, purpose: str) -> Iterator[None]:
    """PyTorch's own generators follow from the four names within the block, then go on as before.

    For what cannot be handed a generator: dropout, initialization, torchaudio's masking.
    """
    with Draws(seed, round, speaker, purpose).taken_up():
        yield
