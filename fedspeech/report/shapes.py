"""Shapes that figures of several kinds of run have: rows with intervals, lines, stacked bars."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.ticker import MaxNLocator

from fedspeech.report.canvas import Plot, color, drawing, plot

COLORS = ("ink", "mean", "kbest", "dendrogram", "random", "other-1", "other-2", "other-3")
STYLES = ("-", "--", ":")
ROW = 26
"""Units of height for one row."""
PANEL = 180
"""The same for the axes of some lines."""


class Rate(NamedTuple):
    """A rate with its interval, and that of each seed."""

    name: str
    mean: float
    low: float
    high: float
    seeds: Sequence[float]


class Line(NamedTuple):
    """Points of one colour, joined by a line unless its `style` is empty."""

    name: str
    """In the legend, if it has one."""
    x: Sequence[float]
    y: Sequence[float]
    place: int
    """Which colour and, where colours are used up, which style."""
    marker: str = ""
    style: str | None = None
    ranges: Sequence[tuple[float, float]] = ()
    """An interval about each point, if they have some: then the axis names the points."""


def rates(rows: Sequence[Rate], label: str, name: str, caption: str) -> Plot:
    """A row for each rate, with its interval, and a point for each seed."""
    with drawing(60 + ROW * len(rows)) as figure:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            axes.plot([row.low, row.high], [place, place], color=color("muted"), linewidth=1.8)
            axes.plot(row.seeds, [place] * len(row.seeds), ".", color=color("muted"))
            axes.plot([row.mean], [place], "o", color=color("kbest"))
        _name_rows(axes, [row.name for row in rows])
        axes.set_xlabel(label)
        axes.grid(axis="x")
        return plot(figure, name, caption)


def lines(
    found: Sequence[Line], labels: tuple[str, str], name: str, caption: str, log: str = ""
) -> Plot:
    """Lines over common axes with these `labels`; those that `log` names are logarithmic."""
    return panels({"": found}, labels, name, caption, log)


def panels(
    found: Mapping[str, Sequence[Line]],
    labels: tuple[str, str],
    name: str,
    caption: str,
    log: str = "",
) -> Plot:
    """Lines as in `lines`, by the title of their axes: one above the other, with the same scales.

    What has one name in several of them is in the legend once.
    """
    with drawing(70 + PANEL * len(found) + 7 * max(map(len, found.values()))) as figure:
        every = figure.subplots(len(found), sharex=True, sharey=True, squeeze=False)[:, 0]
        told: set[str] = set()
        for axes, (title, some) in zip(every, found.items(), strict=True):
            for line in some:
                _draw(axes, line, told)
            axes.set(title=title, ylabel=labels[1])
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            if points := sorted({x for line in some if line.ranges for x in line.x}):
                axes.set_xticks(points, [f"{x:.3g}" for x in points])
            for letter in log:
                _log(axes, letter)
            axes.grid(axis="y")
        every[-1].set_xlabel(labels[0])
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return plot(figure, name, caption)


def _draw(axes: Any, line: Line, told: set[str]) -> None:
    """One line; `told` has the names that are in the legend."""
    style = STYLES[line.place // len(COLORS) % len(STYLES)]
    shade = color(COLORS[line.place % len(COLORS)])
    axes.plot(
        line.x,
        line.y,
        linestyle=style if line.style is None else line.style,
        marker=line.marker,
        markersize=5,
        color=shade,
        label="_nolegend_" if line.name in {"", *told} else line.name,
    )
    told.add(line.name)
    for x, ends in zip(line.x, line.ranges, strict=False):
        axes.plot([x, x], ends, color=shade, linewidth=1, alpha=0.5)


def stacked(
    rows: Sequence[tuple[str, Sequence[float]]],
    parts: Sequence[str],
    label: str,
    name: str,
    caption: str,
) -> Plot:
    """A bar for each row (name, one number for each part), its parts one behind the other."""
    with drawing(90 + ROW * len(rows)) as figure:
        axes = figure.subplots()
        for number, part in enumerate(parts):
            values = [numbers[number] for _, numbers in rows]
            lefts = [sum(numbers[:number]) for _, numbers in rows]
            shade = color(("mean", "kbest", "muted")[number])
            axes.barh(range(len(rows)), values, left=lefts, height=0.7, color=shade, label=part)
        _name_rows(axes, [name for name, _ in rows])
        axes.set_xlabel(label)
        axes.grid(axis="x")
        figure.legend(loc="outside lower center", ncols=len(parts), frameon=False)
        return plot(figure, name, caption)


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _log(axes: Any, letter: str) -> None:
    scale, axis = getattr(axes, f"set_{letter}scale"), getattr(axes, f"{letter}axis")
    scale("log")
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")
