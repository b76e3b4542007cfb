"""Diffs that are there, sparse and hashed: their size against the bound, and against zstd and xz.

    python -m experiments.benchmarks.diff_sizes X.diff [Y.diff ...]
    python -m experiments.benchmarks.diff_sizes runs/NAME

A run of kind `neural-diff` keeps its diffs in `models/diffs`. What a diff sends is read from it by
our own reader, since the array of a hashed one cannot be told from two models as `diff_size` does
it; bound and compressors are those of `diff_size`. The bound of an array is the entropy of its
cells as they are stored, with its table, and there are no positions; general compressors get the
array itself. The exit status is 1 where a diff is above 1.05 of its bound.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.benchmarks import diff_size
from experiments.benchmarks.diff_size import Stored
from fedspeech.diff import wire
from fedspeech.diff.contents import Diff, Form, Segment
from fedspeech.diff.values import Kind, values
from fedspeech.errors import DiffError

Row = Mapping[str, float]


def stored(segment: Segment, kind: Kind) -> Stored:
    """What a segment sends."""
    given = values(segment.codes, kind, segment.scale)
    sent = diff_size.as_stored(given, kind.name.lower(), segment.scale)
    if segment.form != Form.SPARSE:
        return Stored(sent, sparse=False)
    if len(sent) == segment.values:
        return Stored(sent)
    everywhere = np.zeros(segment.values, sent.dtype)
    everywhere[np.cumsum(segment.gaps.astype(np.int64) + 1) - 1] = sent
    return Stored(everywhere)


def weigh(data: bytes) -> Row:
    """Bytes of a diff, and what its bound and general compressors are to it."""
    diff: Diff = wire.decode(data)
    parts = [stored(s, diff.kind) for entry in diff.entries for s in entry.segments]
    more = b"".join(entry.content for entry in diff.entries)
    least = diff_size.bound(parts, diff.kind.name.lower()) + len(more)
    others = diff_size.compressed(parts, more)
    return {
        "bytes": len(data),
        "/ bound": len(data) / least if least else np.inf,
        **{f"{name} / diff": size / len(data) for name, size in sorted(others.items())},
    }


def table(rows: Mapping[str, Row]) -> Iterator[str]:
    """Markdown: a line for each diff, and one for all of a run that are alike."""
    columns = list(next(iter(rows.values())))
    yield f"| diff | {' | '.join(columns)} |"
    yield "| --- |" + " --- |" * len(columns)
    for name, row in rows.items():
        yield f"| {name} | {' | '.join(_text(row[column]) for column in columns)} |"
    alike: dict[str, list[Row]] = {}
    for name, row in rows.items():
        alike.setdefault(name.rpartition(".")[2], []).append(row)
    for name, some in alike.items():
        if len(some) > 1:
            ends = [[pick(row[c] for row in some) for pick in (min, max)] for c in columns]
            spans = (f"{_text(least)} to {_text(most)}" for least, most in ends)
            yield f"| all {len(some)} {name} | {' | '.join(spans)} |"


def _text(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:.3f}"


def _files(names: Sequence[str]) -> list[Path]:
    """The diffs that are named, or all of a run."""
    found: list[Path] = []
    for path in map(Path, names):
        found += sorted((path / "models" / "diffs").glob("*.diff")) if path.is_dir() else [path]
    return found


def main(arguments: Sequence[str]) -> int:
    """The script; 1 where a diff is above the limit, 2 where there is none to weigh."""
    rows = {}
    for path in _files(arguments):
        try:
            rows[path.stem] = weigh(path.read_bytes())
        except (OSError, DiffError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 2
    if not rows:
        print(__doc__, file=sys.stderr)
        return 2
    print("\n".join(table(rows)))
    return int(any(row["/ bound"] > diff_size.MOST for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
