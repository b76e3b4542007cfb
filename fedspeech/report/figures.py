"""The figures of a report, each a `Plot`, or None where there is nothing to draw.

Figures 2 and 3 are those of Mdhaffar, Tommasi, Estève, SPECOM 2021, for this run.
"""

from collections.abc import Sequence
from typing import Any

from matplotlib.collections import LineCollection
from scipy.cluster import hierarchy

from fedspeech.report import captions
from fedspeech.report.canvas import TEXT, Look, Plot, color, drawing, looks, plot
from fedspeech.report.captions import signed
from fedspeech.report.results import Curve, Results
from fedspeech.report.run_folder import LedgerRow
from fedspeech.report.run_tables import size, sums

ROW = 15
"""Units of height for one labelled row."""
NAMED_ROWS = 80
"""With more rows than this, rows are thin and have no names; the tables have them."""
LONGEST_NAME = 24
LEADER = {"arrowstyle": "-", "shrinkA": 1, "shrinkB": 0, "relpos": (1, 0.5)}


def wer_against_alpha(results: Results) -> Plot | None:
    """Figure 3: WER against alpha; all bases above, each with its interval below."""
    bases = [base for base in results.bases if results.cells(base)]
    if not bases:
        return None
    rows = (len(bases) + 1) // 2
    look = looks(results.bases)
    with drawing(250 + 125 * rows) as figure:
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[250, 125 * rows]).flat
        axes = above.add_subplot()
        _references(axes, results)
        for base in bases:
            _curve(axes, results, base, look[base].color, marker=look[base].marker)
        starts = [(results.cells(base)[0][1].mean, base, look[base].color) for base in bases]
        ends = [("G", results.generic), ("P_s", results.personal)]
        starts += [(wer.mean, f"{name} {wer.mean:.2f}", color("ink")) for name, wer in ends]
        _name_lines(axes, starts)
        axes.set(xlabel="alpha (weight of P_s)", ylabel="WER %", xticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
        panels = list(below.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).flat)
        for panel, base in zip(panels, bases, strict=False):
            _panel(panel, results, base, bases, look[base])
        for panel in panels[len(bases) :]:
            panel.set_axis_off()
        for panel in panels[len(bases) - 2 : len(bases)]:
            panel.tick_params(labelbottom=True)
        return plot(figure, "wer-against-alpha", captions.wer_against_alpha(results))


def _panel(axes: Any, results: Results, base: str, bases: Sequence[str], look: Look) -> None:
    _references(axes, results)
    alphas, cells = zip(*results.cells(base), strict=True)
    lows, highs = [cell.low for cell in cells], [cell.high for cell in cells]
    axes.fill_between(alphas, lows, highs, color=look.color, alpha=0.2, linewidth=0)
    for other in bases:
        _curve(axes, results, other, color("muted"), width=0.6)
    _curve(axes, results, base, look.color, width=2.2)
    if best := results.best(base):
        axes.plot(best.alpha, best.mean, "o", ms=7, mfc="none", mec=look.color, mew=1.5)
    axes.set_title(shorten(base), color=look.color, loc="left", fontweight="bold")
    axes.set_xticks([0, 0.5, 1])


def _curve(
    axes: Any, results: Results, base: str, color: str, width: float = 1.8, marker: str = ""
) -> None:
    alphas, cells = zip(*results.cells(base), strict=True)
    marker = marker or ("o" if len(cells) == 1 else "")
    means = [cell.mean for cell in cells]
    axes.plot(alphas, means, color=color, linewidth=width, marker=marker, markersize=4)


def _references(axes: Any, results: Results) -> None:
    axes.set_xlim(-0.03, 1.03)
    axes.grid(axis="y")
    for wer, style in ((results.generic, "--"), (results.personal, ":")):
        axes.axhline(wer.mean, color=color("ink"), linestyle=style, linewidth=1.2)


def _name_lines(axes: Any, starts: Sequence[tuple[float, str, str]]) -> None:
    """The names of lines left of where they start (WER, name, colour), moved apart to be read."""
    low, high = axes.get_ylim()
    step = (high - low) / 13
    at = low - step
    for wer, name, ink in sorted(starts):
        at = max(wer, at + step)
        axes.annotate(
            shorten(name),
            (-0.03, wer),
            (-0.07, at),
            color=ink,
            ha="right",
            va="center",
            fontweight="bold",
            annotation_clip=False,
            arrowprops=LEADER | {"color": ink},
        )
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    axes.spines[["left", "right"]].set_visible(False)


def layer_correlation(results: Results) -> Plot | None:
    """Figure 2: for each layer, correlation between distance and WER over pairs of speakers."""
    layers = results.layer_correlation
    if not layers:
        return None
    with drawing(_height(len(layers))) as figure:
        axes = figure.add_subplot()
        for row, layer in enumerate(layers):
            if layer.pearson is not None:
                axes.plot([0, layer.pearson], [row, row], color=color("ink"), linewidth=2)
                axes.plot(layer.pearson, row, "o", color=color("ink"), markersize=6)
        texts = ["–" if row.pearson is None else signed(row.pearson, 2) for row in layers]
        _rows(axes, [row.layer for row in layers], texts)
        axes.axvline(0, color=color("muted"), linewidth=1)
        axes.set_xlabel("Pearson correlation")
        caption = captions.layer_correlation(layers, results.pairs)
        return plot(figure, "layer-correlation", caption)


def gain(results: Results) -> Plot | None:
    """WER gain from G to P_s per speaker, the largest first, with that of the chosen mix."""
    if not results.per_speaker:
        return None
    speakers = sorted(results.per_speaker, key=lambda row: (-row.gain, row.speaker))
    base = results.chosen_alpha.base if results.chosen_alpha else None
    with drawing(_height(len(speakers))) as figure:
        axes = figure.add_subplot()
        thick = 0.62 if len(speakers) <= NAMED_ROWS else 1
        axes.barh(range(len(speakers)), [row.gain for row in speakers], thick, color=color("muted"))
        marks = [
            (row.generic - row.chosen, i)
            for i, row in enumerate(speakers)
            if row.chosen is not None
        ]
        if base and marks:
            look = looks([*results.bases, base])[base]
            axes.plot(*zip(*marks, strict=True), look.marker, color=look.color, markersize=5)
        _rows(axes, [row.speaker for row in speakers], [signed(row.gain, 1) for row in speakers])
        axes.axvline(0, color=color("muted"), linewidth=1)
        axes.set_xlabel("WER points gained")
        caption = captions.gain(speakers, base if marks else None)
        return plot(figure, "gain", caption)


def dendrogram(results: Results) -> Plot | None:
    """The tree by which `dendrogram` chooses: Ward linkage on the first layer's distances."""
    tree = results.dendrogram
    if tree is None or not tree.linkage:
        return None
    rows = [list(row) for row in tree.linkage]
    drawn = hierarchy.dendrogram(rows, no_plot=True, labels=list(tree.speakers))
    with drawing(_height(len(tree.speakers))) as figure:
        axes = figure.add_subplot()
        # SciPy sets leaf i at 10 i + 5
        links = [
            [(x, (y - 5) / 10) for x, y in zip(xs, ys, strict=True)]
            for xs, ys in zip(drawn["dcoord"], drawn["icoord"], strict=True)
        ]
        axes.add_collection(LineCollection(links, colors=color("dendrogram"), linewidths=1.4))
        axes.set_xlim(0, 1.03 * rows[-1][2] or 1)
        _rows(axes, drawn["ivl"])
        axes.set_xlabel("Ward distance")
        return plot(figure, "dendrogram", captions.dendrogram(tree))


def sent(ledger: Sequence[LedgerRow], full_model: int) -> Plot | None:
    """Bytes sent, a bar per kind and direction."""
    totals = sums(ledger)
    if not totals:
        return None
    with drawing(_height(len(totals))) as figure:
        axes = figure.add_subplot()
        fills = {"down": color("ink"), "up": "none"}
        axes.barh(
            range(len(totals)),
            [total for _, total in totals],
            0.62,
            edgecolor=color("ink"),
            color=[fills.get(direction, color("muted")) for (_, direction), _ in totals],
        )
        names = [f"{kind}, {direction}" for (kind, direction), _ in totals]
        _rows(axes, names, [size(total) for _, total in totals])
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        return plot(figure, "sent", captions.sent(ledger, full_model))


def training(results: Results) -> Plot | None:
    """How G came to be: WER on the development speakers and training loss per epoch."""
    curve = results.loss_curves.get("generic") or Curve()
    named = (("development WER %", curve.dev_wer), ("training loss", curve.train_loss))
    series = [
        (name, [(epoch, value) for epoch, value in enumerate(values, 1) if value is not None])
        for name, values in named
        if any(value is not None for value in values)
    ]
    if not series:
        return None
    with drawing(30 + 110 * len(series)) as figure:
        panels = figure.subplots(len(series), 1, sharex=True, squeeze=False).flat
        for axes, (name, points) in zip(panels, series, strict=True):
            axes.plot(*zip(*points, strict=True), color=color("ink"), linewidth=1.8)
            axes.set_title(name, loc="left")
            axes.grid(axis="y")
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch")
        return plot(figure, "training", captions.training(curve.dev_wer))


def shorten(name: str) -> str:
    """A name for a label: its middle is left out where it is long."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half + 1 :]}"


def _height(rows: int) -> float:
    return 50 + (ROW * max(rows, 2) if rows <= NAMED_ROWS else 500)


def _rows(axes: Any, names: Sequence[str], values: Sequence[str] = ()) -> None:
    """One row per name, the first on top; names at the left, values in a column at the right."""
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if len(names) > NAMED_ROWS:
        axes.set_yticks([])
        return
    axes.set_yticks(range(len(names)), [shorten(name) for name in names])
    for row, text in enumerate(values):
        axes.annotate(
            text,
            (1, row),
            (4, 0),
            xycoords=("axes fraction", "data"),
            va="center",
            textcoords="offset points",
            annotation_clip=False,
            fontsize=TEXT - 1,
        )
