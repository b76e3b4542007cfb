"""What a training goes on from after its process ended, epoch by epoch.

A file of PyTorch's, and after it the SHA-256 of its bytes: PyTorch does not notice a flipped bit.
"""

import hashlib
import io
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from fedspeech.errors import RunError
from fedspeech.tensors import write_whole
from fedspeech.training.loop import Loop

DIGEST = hashlib.sha256().digest_size
"""Bytes."""


def save(path: Path, loop: Loop, **more: Any) -> None:
    """Write everything that the next epoch depends on: model, optimizer, and what else is given."""
    _write(path, states(loop, more))


class Writer:
    """Writes checkpoints beside what the loop computes next, one at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._underway: Future[None] | None = None

    def save(self, path: Path, loop: Loop, **more: Any) -> None:
        """As `save`, of what there is now. Raises DiskError where the one before failed."""
        self.wait()
        # A copy on the processor: the loop changes its tensors while they are written.
        self._underway = self._thread.submit(_write, path, copied(states(loop, more)))

    def wait(self) -> None:
        """Come back when all is written. Raises DiskError where that failed."""
        underway, self._underway = self._underway, None
        if underway is not None:
            underway.result()


def states(loop: Loop, more: Mapping[str, Any]) -> dict[str, Any]:
    """All that a loop goes on from, and what else is given; not a copy."""
    return {"model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict(), **more}


def copied(content: Any) -> Any:
    """The same with each tensor by itself on the processor, whatever it was a view of."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, Mapping):
        return {name: copied(each) for name, each in content.items()}
    return [copied(each) for each in content] if isinstance(content, list) else content


def _write(path: Path, states: Mapping[str, Any]) -> None:
    # In memory first: on a full disk PyTorch raises what its other failures raise as well.
    saved = io.BytesIO()
    torch.save(states, saved)
    saved.write(hashlib.sha256(saved.getbuffer()).digest())
    write_whole(path, lambda part: part.write_bytes(saved.getbuffer()))


def load(path: Path, loop: Loop, *names: str) -> list[Any] | None:
    """Let the loop go on from a checkpoint; what else is there under these names.

    None where there is no checkpoint. Raises RunError where it is damaged.
    """
    if not path.exists():
        return None
    written = path.read_bytes()
    saved, digest = written[:-DIGEST], written[-DIGEST:]
    if hashlib.sha256(saved).digest() != digest:
        raise RunError(f"{path}: damaged; without it the training begins anew")
    try:
        content = torch.load(io.BytesIO(saved), weights_only=True)
        more = [content[name] for name in names]
        loop.model.load_state_dict(content["model"])
        loop.optimizer.load_state_dict(content["optimizer"])
    except Exception as error:  # torch raises many kinds for what it does not know
        why = " ".join(str(error).split())
        raise RunError(f"{path}: not a checkpoint of this training: {why}") from error
    return more
