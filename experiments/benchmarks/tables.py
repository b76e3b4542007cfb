"""Rows as Markdown tables, and the README that holds the last ones."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.harness import Row
from experiments.tables import markdown
from fedspeech.tensors import write_whole

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
Results = Mapping[str, Any]


def text(value: Any) -> str:
    """A cell: a spread as its median [least, greatest], other numbers with three digits."""
    if isinstance(value, Mapping):
        return f"{text(value['median'])} [{text(value['low'])}, {text(value['high'])}]"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(rows: Sequence[Row]) -> str:
    """The rows of one table; a row lacks what could not be measured, and says why at its end."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "table"))
    names.sort(key=lambda name: name == "failed")  # stable: the rest stays as it is
    lines = [[text(row.get(name, "")) for name in names] for row in rows]
    return markdown(names, lines)


def tables(rows: Iterable[Row]) -> str:
    """Some rows, each table under its name, in the order of their first rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["table"], []).append(row)
    return "\n".join(f"### {name}\n\n{table(some)}" for name, some in found.items())


def about(results: Results) -> str:
    """Where, when and how it was measured."""
    machine = results["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} of them used, {machine['memory GiB']} GiB, "
        f"Python {machine['python']}, torch {machine['torch']}, Flower {machine['flwr']}, "
        f"Ray {machine['ray']}. Seed {results['seed']}.",
        "A cell with brackets is the median of the repetitions, [the least, the greatest].",
    ]
    return "\n".join(lines) + "\n"


def document(results: Results) -> str:
    """All that was measured."""
    parts = [about(results), "![medians of all benchmarks](results.svg)\n"]
    for name, one in results["benchmarks"].items():
        head = f"## {name}\n\n{one['date']}, {one['seconds']:.0f} s, `{one['command']}`.\n"
        parts += [head, tables(one["rows"])]
    return "\n".join(parts)


def update(path: Path, results: Results) -> None:
    """Put the tables between the markers of a README. Raises ValueError where it lacks them."""
    before = path.read_text(encoding="utf-8")
    head, found, rest = before.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"{path}: expected the lines {BEGIN} and {END}")
    whole = f"{head}{BEGIN}\n\n{document(results)}\n{END}{tail}"
    write_whole(path, lambda part: part.write_text(whole, encoding="utf-8"))
