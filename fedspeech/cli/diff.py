"""`fedspeech diff`: one model turned into the next, on safetensors files of any model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedspeech.cli.listing import say, show
from fedspeech.errors import DiffError

if TYPE_CHECKING:
    import torch

    from fedspeech.diff.contents import Diff
    from fedspeech.diff.inspect import Cost
    from fedspeech.diff.methods import Method
    from fedspeech.tensors import Tensors

app = typer.Typer(no_args_is_help=True, help="What turns one generation of a model into the next.")

Old = Annotated[Path, typer.Argument(metavar="OLD", help="The old model, a safetensors file.")]
File = Annotated[Path, typer.Argument(metavar="X.diff", help="The diff.")]
SPARSE, HASH = "sparse", "hash"
SHOWN = 3
"""Tensors that a remark names."""
COLUMNS = (
    "tensor",
    "dtype",
    "change",
    "form",
    "codes",
    "of",
    "entry",
    "positions",
    "values",
    "/ bound",
)


@app.command()
def make(
    old: Old,
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The new model.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="X.diff", help="The diff.")],
    budget: Annotated[
        str | None, typer.Option(help="The most bytes: 500kB, 64KiB, or 10x: a tenth of NEW.")
    ] = None,
    method: Annotated[str, typer.Option(help=f"{SPARSE} or {HASH}.")] = SPARSE,
    values: Annotated[
        str | None, typer.Option(help="fp32, fp16, bf16 or int8; the one that loses least.")
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Of sparse: the share of values that stay as they are.")
    ] = None,
    cells: Annotated[
        float | None, typer.Option(help="Of hash: cells of an array for each value of its matrix.")
    ] = None,
    hashes: Annotated[
        int | None, typer.Option(help="Of hash: how many functions; 3.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of hash: what its functions follow from; OLD's hash.")
    ] = None,
    additive: Annotated[
        bool, typer.Option("--additive", help="Of hash: add the cells' sum, not |value| times it.")
    ] = False,
) -> None:
    """Write what turns OLD into NEW, as near as it can within the budget.

    Without a budget everything is sent in fp32, unless sparsity, cells or values say otherwise, and
    tensors in half precision that mostly change are sent as they are.

    Example: `fedspeech diff make old.safetensors new.safetensors --budget 500kB -o new.diff`
    """
    from fedspeech import tensors
    from fedspeech.diff import budget as budgets
    from fedspeech.diff import values as kinds
    from fedspeech.diff import wire
    from fedspeech.diff.apply import apply as apply_to

    _apart(out, OLD=old, NEW=new)
    hashing = {"cells": cells, "hashes": hashes, "seed": seed, "additive": additive or None}
    share = _share(method, sparsity, hashing)
    kind = None if values is None else kinds.kind(values)
    before, after = tensors.read(old), tensors.read(new)
    full = tensors.size(after)
    most = None if budget is None else budgets.parse(budget, full)
    with _told() as tried:
        way = _way(method, before, hashing)
        made = budgets.make(before, after, most, way, kind, share, tried=tried)
    given = tensors.sha256(apply_to(before, made.data))
    tensors.write_whole(out, lambda part: part.write_bytes(made.data))
    size = len(made.data)
    say(
        f"{out}: {size:,} bytes, NEW has {full / size:.4g} times as many; "
        f"{100 * made.lost:.3g} % of the change's square is lost"
    )
    for line in _remarks(wire.decode(made.data), before, after, asked_additive=bool(additive)):
        say(line)
    to_the_bit = given == tensors.sha256(after)
    say(f"gives {given}, {'NEW to the bit' if to_the_bit else 'near NEW, not to the bit'}")


def _apart(out: Path, **inputs: Path) -> None:
    """Raise DiffError where what is to be written is one of the files that are read.

    Raises DiskError where it cannot be written, before any work is done for it.
    """
    from fedspeech.tensors import destination

    destination(out)
    for name, path in inputs.items():
        if out.exists() and path.exists() and out.samefile(path):
            raise DiffError(f"--out: {out} is {name}, which would be lost; name another file")


def _remarks(diff: "Diff", old: "Tensors", new: "Tensors", asked_additive: bool) -> Iterator[str]:
    """What a user would not expect of what was made."""
    from fedspeech.diff.contents import Change, Form
    from fedspeech.diff.floats import HALVES

    verbatim = [entry for entry in diff.entries if entry.change == Change.VERBATIM]
    for halves, why in ((False, "their dtype is sent whole"), (True, "most of them changes")):
        if some := [entry for entry in verbatim if (entry.dtype in HALVES) == halves]:
            size = sum(len(entry.content) for entry in some)
            names = [entry.name for entry in some]
            yield f"{size:,} bytes as they are, for {why}: {_some(names)}"
    if diff.additive and not asked_additive:
        yield f"additive, for |value| times a sum moves no zeros: {_some(diff.additive)}"
    times = [
        entry.name
        for entry in diff.entries
        if any(segment.form == Form.MULTIPLICATIVE for segment in entry.segments)
    ]
    still = {name: count for name in times if (count := _still(old[name], new[name]))}
    if still:
        zeros = f"{sum(still.values()):,} zeros stay"
        yield f"{zeros}, for |value| times a sum does not move them: {_some(list(still))}"


def _still(old: "torch.Tensor", new: "torch.Tensor") -> int:
    """Values that are zero, and should not be any more."""
    return int(((old == 0) & (new[: len(old)] != 0)).sum())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _share(method: str, sparsity: float | None, hashing: Mapping[str, Any]) -> float | None:
    """What to send of all values, or cells of their arrays; refuses what does not go together."""
    others = {SPARSE: hashing, HASH: {"sparsity": sparsity}}
    if method not in others:
        raise DiffError(f"--method: expected {SPARSE} or {HASH}, found {method!r}")
    for name, given in others[method].items():
        if given is not None:
            (other,) = others.keys() - {method}
            raise DiffError(f"--{name} is an option of --method {other}, not of {method}")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise DiffError(f"--sparsity: expected at least 0 and below 1, found {sparsity}")
    if (cells := hashing["cells"]) is not None and not 0 < cells <= 1:
        raise DiffError(f"--cells: expected above 0 and at most 1, found {cells}")
    return cells if sparsity is None else 1 - sparsity


def _way(method: str, old: "Tensors", hashing: Mapping[str, Any]) -> "Callable[[Any], Method]":
    from fedspeech.diff.hashed import seed_of
    from fedspeech.diff.methods import Hashed, Sparse
    from fedspeech.tensors import sha256

    if method == SPARSE:
        return Sparse
    given = {name: hashing[name] for name in ("hashes", "seed", "additive")}
    chosen = {name: value for name, value in given.items() if value is not None}
    return partial(Hashed, **{"seed": seed_of(sha256(old)), **chosen})


@contextmanager
def _told() -> Iterator[Callable[[str], None]]:
    """Show each precision that was tried; nobody knows how many there will be."""
    from fedspeech.progress import stage

    number = count(1)
    with stage(1) as shown:

        def tried(detail: str) -> None:
            shown.start("precisions tried", next(number))
            shown.advance(detail)

        yield tried


@app.command()
def apply(
    old: Old,
    diff: File,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NEW", help="The new model.")],
) -> None:
    """Write the model that a diff makes of OLD. Both are checked by their hashes; NEW may be OLD.

    Example: `fedspeech diff apply old.safetensors new.diff -o new.safetensors`
    """
    from fedspeech.diff import files
    from fedspeech.diff.apply import apply_file

    _apart(out, **{"the diff": diff})  # OLD may be: it is taken over in one step
    data = files.read(diff)
    with _named(diff):
        say(f"{out}: {apply_file(old, data, out)}")


@app.command()
def inspect(diff: File) -> None:
    """Show what is in a diff: bytes of each tensor, and how far above the bound they are.

    The bound is log2 C(N, n) for n positions among N and the entropy of the values with its tables:
    one for each tensor or one for all, whichever is smaller; a row counts one for itself. Tensors
    of few codes share one in the diff: the last row has their bytes.

    Example: `fedspeech diff inspect new.diff`
    """
    from fedspeech.diff import files, wire
    from fedspeech.diff.inspect import costs, least

    data = files.read(diff)
    with _named(diff):
        about, rows = wire.decode(data), costs(data)
    bound = least(about)
    say(f"base    {about.base}")
    say(f"result  {about.result}")
    hashes = f"; {about.hashes} hash functions of seed {about.seed}" if about.hashes else ""
    say(f"values  {about.kind.name.lower()}{hashes}")
    above = f", {len(data) / bound:.4f} times the bound of {bound:,.0f}" if bound else ""
    say(f"bytes   {len(data):,}{above}")
    show(COLUMNS, [_cells(row) for row in rows])


def _cells(row: "Cost") -> list[str]:
    numbers = (row.count, row.among, row.entry, row.positions, row.values)
    texts = ["" if number is None else f"{number:,}" for number in numbers]
    ratio = f"{(row.size - row.entry) / row.bound:.4f}" if row.bound else ""
    return [row.name, row.dtype, row.change, row.form, *texts, ratio]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What is wrong with a diff is told with the name of its file."""
    try:
        yield
    except DiffError as error:
        raise DiffError(f"{path}: {error}") from None
