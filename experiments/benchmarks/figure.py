"""One figure of all benchmarks: panels of medians, with bars from the least to the greatest."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.benchmarks.harness import Row
from fedspeech.report.canvas import STYLE, color
from fedspeech.tensors import write_whole

COLOURS = (
    *("mean", "kbest", "dendrogram", "random"),
    *("other-1", "other-2", "other-3", "muted", "ink", "generic"),
)
MARKERS = "oDs^vPXh*<"
WIDTH, HEIGHT, COLUMNS = 5.6, 3.6, 2
"""Inches of a panel; panels side by side."""
NAME = 22
"""Letters in a line of a row's name."""


@dataclass(frozen=True)
class Panel:
    """What of a table is drawn: `value` against `along`, in one colour for each `series`.

    Where `along` is a text, its values are rows; else a line. `logarithmic` axes are both.
    """

    table: str
    along: str
    value: str
    series: tuple[str, ...]
    logarithmic: bool = False


def draw(path: Path, panels: Sequence[Panel], rows: Iterable[Row]) -> None:
    """Write an SVG file with those panels that have rows; none without any."""
    measured = [row for row in rows if "failed" not in row]
    found = [(panel, _of(panel, measured)) for panel in panels]
    found = [(panel, some) for panel, some in found if some]
    if not found:
        return
    lines = -(-len(found) // COLUMNS)
    with matplotlib.style.context(["default", STYLE]):
        size = (WIDTH * COLUMNS, HEIGHT * lines)
        figure = Figure(figsize=size, layout="constrained")
        places = figure.subfigures(lines, COLUMNS, squeeze=False).flat
        for place, (panel, some) in zip(places, found, strict=False):
            _panel(place.subplots(), panel, some)
        unknown = dict.fromkeys(("Creator", "Date"))
        write_whole(
            path,
            lambda part: figure.savefig(part, format="svg", metadata=unknown, facecolor="white"),
        )


def _of(panel: Panel, rows: Sequence[Row]) -> list[Row]:
    wanted = {panel.along, panel.value}
    return [row for row in rows if row["table"] == panel.table and wanted <= set(row)]


def _panel(axes: Any, panel: Panel, rows: Sequence[Row]) -> None:
    series: dict[str, list[Row]] = {}
    for row in rows:
        name = ", ".join(str(row[key]) for key in panel.series if key in row)
        series.setdefault(name, []).append(row)
    texts = list(dict.fromkeys(row[panel.along] for row in rows))
    by_rows = any(isinstance(text, str) for text in texts)
    handles = []
    for number, (name, some) in enumerate(series.items()):
        look = {"color": color(COLOURS[number % len(COLOURS)])}
        look["marker"] = MARKERS[number % len(MARKERS)]
        values = [_ends(row[panel.value]) for row in some]
        middles, errors = [v[0] for v in values], [[v[1] for v in values], [v[2] for v in values]]
        if by_rows:
            places = [texts.index(row[panel.along]) for row in some]
            axes.errorbar(middles, places, xerr=errors, linestyle="", **look)
        else:
            axes.errorbar([row[panel.along] for row in some], middles, yerr=errors, **look)
        handles.append(Line2D([], [], linestyle="", label=name, **look))
    axes.set_title(panel.table, loc="left")
    if len(series) > 1:
        axes.legend(handles=handles, fontsize=8, frameon=False)
    if by_rows:
        axes.set_yticks(range(len(texts)), [fill(text, NAME) for text in texts])
        axes.set_ylim(len(texts) - 0.5, -0.5)
        axes.set_xlabel(panel.value)
        axes.set_xlim(left=0)
        axes.grid(axis="x")
        return
    axes.set(xlabel=panel.along, ylabel=panel.value)
    axes.grid()
    if panel.logarithmic:
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)


def _ends(value: Any) -> tuple[float, float, float]:
    """The middle, and how far it is to the least and to the greatest."""
    if not isinstance(value, Mapping):
        return float(value), 0.0, 0.0
    middle = value["median"]
    return middle, middle - value["low"], value["high"] - middle
