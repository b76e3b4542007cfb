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


@contextmanager
def scoped(seed: int, round: int, speaker: str, purpose: str) -> Iterator[None]:
    """PyTorch's own generators follow from the four names within the block, then go on as before.

    For what cannot be handed a generator: dropout, initialization, torchaudio's masking.
    """
    with torch.random.fork_rng():
        torch.manual_seed(key(seed, round, speaker, purpose))
        yield
