"""The figures of a run of kind `neural-diff`: error and regret against the generation."""

from collections.abc import Callable
from typing import Any

from fedspeech.report.canvas import Plot, color, drawing, plot
from fedspeech.report.diff_results import BLC, DIFF, DiffResults, Row

COLORS = {"sparse": "kbest", "hash": "mean", None: "ink"}
MARKERS = {"sparse": "D", "hash": "o", None: "s"}
STYLES = {"BL": "-", "BL∞": ":", BLC: "--", DIFF: "-"}


def every(results: DiffResults) -> dict[str, Plot | None]:
    """All of them by their titles."""
    return {"Errors": errors(results), "Regret": regret(results)}


def errors(results: DiffResults) -> Plot:
    """Error against generation, a panel per ratio, with BL and BL∞ in each."""
    last = len(results.generations) - 1
    (never,) = (row for row in results.lines["BL∞"] if row.generation == last)
    (anew,) = (row for row in results.lines["BL"] if row.generation == last)
    caption = (
        f"{results.metric} in percent against the generation. In the last one, F_0 that was never "
        f"updated (BL∞) has {never.mean:.2f} %, and a model trained anew (BL) {anew.mean:.2f} %. "
        "Full lines are diffs, broken ones are models that are themselves as sparse (BLC)."
    )
    return _panels(results, f"{results.metric} %", lambda row: row.mean, True, caption)


def regret(results: DiffResults) -> Plot:
    """Regret against generation, a panel per ratio."""
    diffs = [row.minus_blc.mean for row in results.table if row.minus_blc]
    caption = (
        f"Regret: points above BL. The diff is better than {BLC} at the same ratio in "
        f"{sum(mean < 0 for mean in diffs)} of {len(diffs)} cases."
    )
    return _panels(results, "regret, points", lambda row: row.regret.mean, False, caption)


def _panels(
    results: DiffResults, label: str, value: Callable[[Row], float], baselines: bool, caption: str
) -> Plot:
    with drawing(60 + 170 * len(results.ratios)) as figure:
        panels = figure.subplots(len(results.ratios), 1, sharex=True, sharey=True, squeeze=False)
        for axes, ratio in zip(panels.flat, results.ratios, strict=True):
            axes.set_title(f"{ratio:g}x", loc="left")
            axes.set_ylabel(label)
            axes.grid(axis="y")
            for line in results.lines.values():
                if line[0].ratio == ratio or (baselines and line[0].ratio is None):
                    _line(axes, line, value)
        axes.set_xlabel("generation")
        axes.set_xticks(range(len(results.generations)))
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        return plot(figure, label.split()[0].strip(","), caption)


def _line(axes: Any, line: list[Row], value: Callable[[Row], float]) -> None:
    first = line[0]
    axes.plot(
        [row.generation for row in line],
        [value(row) for row in line],
        color=color("muted" if first.model == "BL∞" else COLORS[first.method]),
        linestyle=STYLES[first.model],
        marker=MARKERS[first.method],
        markerfacecolor="none" if first.model in (BLC, "BL∞") else None,
        markersize=5,
        linewidth=1.8,
        label=" ".join(filter(None, (first.model, first.method))),
    )
