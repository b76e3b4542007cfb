"""A diff within a budget: what is asked for, and what is made of it.

What a diff loses is the squared distance between the model that it gives and the new one, each
tensor in units of its root mean square. `search.py` finds the diff that fits and loses least.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedspeech.diff import wire
from fedspeech.diff.apply import update
from fedspeech.diff.compare import Comparison, compare, equal, mostly_changed
from fedspeech.diff.fresh import check_fresh
from fedspeech.diff.methods import Method, Sparse
from fedspeech.diff.search import OTHERS, STEPS, Precision, Search
from fedspeech.diff.values import Kind
from fedspeech.errors import DiffError
from fedspeech.tensors import Tensors, sha256

UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20}


@dataclass(frozen=True)
class Made:
    """A diff, the model that it gives, and the share of the change's square that it loses;
    `additive` are tensors that are hashed additively."""

    data: bytes
    result: Tensors
    lost: float
    additive: tuple[str, ...]


def parse(text: str, full: int) -> int:
    """A budget in bytes: `500kB`, `64KiB`, `1.5 MB`, `70000`, or `10x`: a tenth of `full` bytes.

    Raises DiffError for anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+) ?([a-zA-Z]*)", text.strip())
    number = float(found[1]) if found else 0.0
    if not found or found[2] not in {*UNITS, "x"} or number == 0:
        raise DiffError(f"budget: expected bytes (500kB, 64KiB) or a ratio (10x), found {text!r}")
    bytes = full / number if found[2] == "x" else number * UNITS[found[2]]
    if not math.isfinite(bytes):
        raise DiffError(f"budget: expected a number of bytes that a file can have, found {text!r}")
    return int(bytes)


def check_budgets(budgets: Mapping[Any, str]) -> None:
    """Raise DiffError, saying what it is for, where a text is no budget."""
    for what, text in budgets.items():
        try:
            parse(text, full=1)
        except DiffError as error:
            raise DiffError(f"{what}: {error}") from None


def make(
    old: Mapping[str, torch.Tensor],
    new: Mapping[str, torch.Tensor],
    budget: int | None = None,
    method: Callable[[Comparison], Method] = Sparse,
    kind: Kind | None = None,
    share: float | None = None,
    whole: Collection[str] = (),
    tried: Callable[[str], object] = lambda _: None,
) -> Made:
    """The diff from old to new of at most `budget` bytes that loses least.

    `share` fixes the share of values that are sent (1 - sparsity), or of cells. `kind` fixes how
    values are stored; without a budget it is fp32, and without a share everything is sent: then
    tensors in half precision that mostly change go as they are, which takes less. Tensors that
    `whole` names do not start from the old ones (`compare`). `tried` is told the best so far after
    each precision. Raises DiffError where the budget is too small, a value is NaN or infinite, or
    more values start from zero than devices take from so few bytes.
    """
    if budget is None and share is None and kind is None:
        whole = {*whole, *mostly_changed(old, new)}
    search = Search(old, compare(old, new, whole), method, share, tried)
    if budget is None:
        diff = search.diff(search.most, Precision(Kind.FP32 if kind is None else kind))
    else:
        diff = search.best(budget, [p for p in (*STEPS, *OTHERS) if kind in (None, p.kind)])
    result = dict(update(sorted(old.items()), diff))
    for entry in diff.entries:
        if entry.segments and not bool(torch.isfinite(result[entry.name]).all()):
            raise DiffError(
                f"tensor {entry.name} would get values that a {entry.dtype} does not hold"
            )
    data = wire.encode(replace(diff, result=sha256(result)))
    check_fresh(diff.entries, len(data), sum(tensor.numel() for tensor in old.values()))
    return Made(data, result, search.lost(diff), diff.additive)


def exact(old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> bytes | None:
    """A diff that gives the new model to the bit, or None where there is none.

    w + (v - w) is not v for every pair of values. Tensors in which it is not go as they are where
    they are in half precision. Those in float32 start from zero, and only a zero with a minus
    cannot be had from there.
    """
    whole: list[str] = []
    for _ in range(2):
        made = make(old, new, whole=whole)
        whole = [name for name, tensor in new.items() if not equal(made.result[name], tensor)]
        if not whole:
            return made.data
    return None
