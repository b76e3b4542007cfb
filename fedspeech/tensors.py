"""Named tensors: a model's state as every other part of the platform sees it.

A model in memory is `Tensors` (name -> CPU tensor). A model that need not be in memory at once is a
`TensorStream`: pairs in the order of the names, read one tensor at a time.
"""

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedspeech.errors import DiskError, ModelError

Tensors = dict[str, torch.Tensor]
TensorStream = Iterable[tuple[str, torch.Tensor]]
SUM_BLOCK = 2**16
"""Values that are summed up at a time; 512 KiB in float64."""
END = ("no tensor", torch.empty(0))
"""Stands beside the tensors that a longer stream still has."""


def state(module: torch.nn.Module) -> Tensors:
    """The module's parameters and buffers, detached, on CPU, contiguous, in the order of names."""
    items = sorted(module.state_dict().items())
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in items}


def sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """The generation's name: SHA-256 over names, dtypes, shapes, little-endian bytes."""
    return sha256_of(sorted(tensors.items()))


def sha256_of(stream: TensorStream) -> str:
    """`sha256` of a model that is read one tensor at a time."""
    digest = hashlib.sha256()
    for name, tensor in stream:
        hash_tensor(digest, name, tensor)
    return digest.hexdigest()


def hash_tensor(digest: "hashlib._Hash", name: str, tensor: torch.Tensor) -> None:
    """One more tensor, in the order of names."""
    hash_values(digest, name, tensor.dtype, tuple(tensor.shape), [raw(tensor)])


def hash_values(
    digest: "hashlib._Hash",
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    runs: Iterable[memoryview],
) -> None:
    """`hash_tensor` for values that come as some runs of bytes."""
    digest.update(f"{name}\0{dtype}\0{shape}\0".encode())
    for run in runs:
        digest.update(run)


def raw(tensor: torch.Tensor) -> memoryview:
    """The values' bytes, row by row, little-endian; copied only where they lie otherwise."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # What has no values may have any stride, and PyTorch does not view that as bytes.
    return flat.view(torch.uint8).numpy().data if len(flat) else memoryview(b"")


def size(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of all values."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def add(
    base: TensorStream, other: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """base + other, tensor by tensor, in the dtype of base."""
    for name, tensor in base:
        yield name, (tensor + other[name]).to(tensor.dtype)


def subtract(
    left: TensorStream, right: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """left - right, tensor by tensor, in the dtype of left."""
    for name, tensor in left:
        yield name, (tensor - right[name]).to(tensor.dtype)


def weighted_sum(streams: Sequence[TensorStream], weights: Sequence[float]) -> TensorStream:
    """sum_i weights[i] * streams[i], accumulated in float64, given in the first stream's dtype.

    The streams are read side by side, so that only one tensor of each is in memory at a time.
    Raises ModelError where the streams differ in names or shapes.
    """
    for items in itertools.zip_longest(*streams, fillvalue=END):
        name, first = items[0]
        for other, tensor in items:
            if other != name or tensor.shape != first.shape:
                raise ModelError(
                    f"models do not fit together: {name} {tuple(first.shape)} "
                    f"beside {other} {tuple(tensor.shape)}"
                )
        yield name, _weighted([tensor for _, tensor in items], weights)


def _weighted(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weighted sum in float64, block by block: what is summed up stays in the cache."""
    parts = [torch.split(tensor.flatten(), SUM_BLOCK) for tensor in tensors]
    summed = torch.empty(tensors[0].shape, dtype=tensors[0].dtype)
    for out, *blocks in zip(torch.split(summed.view(-1), SUM_BLOCK), *parts, strict=True):
        total = torch.zeros(len(out), dtype=torch.float64)
        for weight, block in zip(weights, blocks, strict=True):
            total.add_(block, alpha=weight)
        out.copy_(total)
    return summed


def interpolate(left: TensorStream, right: TensorStream, alpha: float) -> TensorStream:
    """alpha * left + (1 - alpha) * right; exactly left at alpha = 1 and right at alpha = 0.

    Raises ModelError where the streams differ in names or shapes.
    """
    if alpha == 1:
        return left
    if alpha == 0:
        return right
    return weighted_sum([left, right], [alpha, 1 - alpha])


def distance(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> float:
    """The Euclidean distance between two sets of tensors with equal names, summed in float64."""
    total = sum(
        float((tensor.double() - right[name].double()).square().sum())
        for name, tensor in left.items()
    )
    return math.sqrt(total)


def check_like(tensors: Mapping[str, torch.Tensor], model: Mapping[str, torch.Tensor]) -> None:
    """Raise ModelError unless the tensors are finite and have the model's names and shapes."""
    for name in sorted(set(model) ^ set(tensors)):
        raise ModelError(f"tensor {name} is {'missing' if name in model else 'not in the model'}")
    for name, tensor in sorted(tensors.items()):
        if tensor.shape != model[name].shape:
            raise ModelError(
                f"tensor {name} has shape {tuple(tensor.shape)}, "
                f"the model has {tuple(model[name].shape)}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"tensor {name} has values that are NaN or infinite")


def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file whole or not at all. Raises DiskError where that fails."""
    contiguous = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
    # Not save_file: killed, it would leave a file with a name of its own.
    write_whole(path, lambda part: part.write_bytes(save(contiguous)))


def private_folder(path: Path) -> None:
    """Make a folder into which nobody but its owner may look, where there is none.

    Raises DiskError where that fails.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error}") from error


def try_writing(folder: Path) -> None:
    """Raise DiskError where this process cannot write in a folder; nothing is left behind."""
    try:
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise DiskError(f"cannot write in {folder}: {error.strerror}") from error


def write_whole(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` fill a file beside `path`, flush it to disk, and give it its name in one step.

    A reader sees the old file or the new one. Where `path` is a link, that is what it leads to.
    Raises DiskError (no space left, no permission, something there that is no regular file).
    """
    whole = destination(path)
    part = whole.with_name(f".{whole.name}.{os.getpid()}.part")
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        save(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(whole)
        _flush_name(whole)
    except OSError as error:
        # The name of the part says nothing to whoever named the file.
        told = error if error.filename not in (None, str(part)) else error.strerror or error
        raise DiskError(f"cannot write {path}: {told}") from error
    finally:
        with suppress(OSError):
            part.unlink()


def _flush_name(path: Path) -> None:
    """So that a name stays given where the power fails, before another file relies on it."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # there are file systems that flush no folders
            os.fsync(folder)
    finally:
        os.close(folder)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def destination(path: Path) -> Path:
    """The file that is written in place of `path`: what it leads to, where it is a link.

    Raises DiskError where something is there that is no regular file, and would be lost.
    """
    whole = Path(os.path.realpath(path))
    if os.path.lexists(whole) and not whole.is_file():
        found = "a directory" if whole.is_dir() else "something that is no regular file"
        raise DiskError(f"cannot write {path}: {found} is there")
    return whole


def read(path: Path) -> Tensors:
    """All tensors of a safetensors file. Raises ModelError where it is missing or damaged."""
    return dict(stream(path))


def intact(path: Path, name: str) -> bool:
    """Whether the model with this hash is in the file."""
    try:
        return path.exists() and sha256_of(stream(path)) == name
    except ModelError:
        return False


def stream(path: Path, names: Sequence[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a safetensors file in the order of names, read one at a time.

    Raises ModelError where the file is missing or damaged, or lacks one of `names`.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
            wanted = sorted(file.keys()) if names is None else names
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: not a readable model: {error}") from error
        for name in wanted:
            try:
                tensor = file.get_tensor(name)
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path}: cannot read tensor {name}: {error}") from error
            yield name, tensor
