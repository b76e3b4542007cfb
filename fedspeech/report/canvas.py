"""How figures look: one palette, one style, and SVG for an HTML page or for a file of its own.

Figures are 340 units wide, about the width of a phone, so that their text stays legible there.
Colours are drawn as one fixed hex each and then become CSS variables: the page gives them their
value for light and dark.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape

import matplotlib.style
from matplotlib.figure import Figure

WIDTH = 340
FILE_WIDTH = 510
"""Pixels of a file of its own."""
POINTS_PER_INCH = 72
TEXT = 11
FONT = "DejaVu Sans"

# name -> (on white, on dark). All but `line` are at least 4.5 : 1 against the page, and the paper's
# five bases stay apart for colour-blind eyes.
PALETTE = {
    "ink": ("#1b1f24", "#e8eaed"),
    "muted": ("#59626c", "#a3acb6"),
    "line": ("#d3d9df", "#3b434c"),
    "generic": ("#555a60", "#8b9095"),
    "mean": ("#0148d3", "#5b8cf0"),
    "kbest": ("#b84300", "#f08457"),
    "dendrogram": ("#01804e", "#78ddb4"),
    "random": ("#c32699", "#f997e8"),
    "other-1": ("#80640a", "#e3bb47"),
    "other-2": ("#007484", "#49c7d7"),
    "other-3": ("#87493a", "#dd9d89"),
}
MARKERS = {"generic": "s", "mean": "o", "kbest": "D", "dendrogram": "^", "random": "v"}
SPARE = (("other-1", "P"), ("other-2", "X"), ("other-3", "h"))
STYLE = {
    "font.family": FONT,
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "text.parse_math": False,
    "text.color": PALETTE["ink"][0],
    "axes.labelcolor": PALETTE["muted"][0],
    "axes.edgecolor": PALETTE["line"][0],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": PALETTE["line"][0],
    "xtick.labelcolor": PALETTE["muted"][0],
    "ytick.color": PALETTE["line"][0],
    "ytick.labelcolor": PALETTE["muted"][0],
    "grid.color": PALETTE["line"][0],
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "fedspeech",
}


@dataclass(frozen=True)
class Look:
    """How a base is drawn, the same in every figure."""

    color: str
    marker: str


@dataclass(frozen=True)
class Plot:
    """A figure for the page: an <svg> element, and in a sentence or two what it shows."""

    name: str
    """That no other figure of the run has."""
    svg: str
    caption: str


def color(name: str) -> str:
    """The hex that stands for a colour of the palette while a figure is drawn."""
    return PALETTE[name][0]


def looks(bases: Sequence[str]) -> dict[str, Look]:
    """The look of each base: its own for the paper's five, the spare ones in turn for others."""
    others = [base for base in dict.fromkeys(bases) if base not in MARKERS]
    spare = {base: SPARE[i % len(SPARE)] for i, base in enumerate(others)}
    names = {base: spare.get(base) or (base, MARKERS[base]) for base in bases}
    return {base: Look(color(name), marker) for base, (name, marker) in names.items()}


@contextmanager
def drawing(height: float) -> Iterator[Figure]:
    """An empty figure of WIDTH x height units in the report's style, whatever the user's own is."""
    with matplotlib.style.context(["default", STYLE]):
        inches = (WIDTH / POINTS_PER_INCH, height / POINTS_PER_INCH)
        yield Figure(figsize=inches, layout="constrained")


def plot(figure: Figure, name: str, caption: str) -> Plot:
    """The figure as an <svg> element for an HTML page; the same figure gives the same text.

    `name` keeps its ids apart from other figures'. To be called while its `drawing` is open.
    """
    buffer = io.StringIO()
    unknown = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings():
        # The browser has the letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=unknown)
    svg = buffer.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    for key, (light, _) in PALETTE.items():
        body = body.replace(f": {light}", f": var(--{key})")
    height = figure.get_figheight() * POINTS_PER_INCH
    head = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(caption)}">'
    return Plot(name, head + body.rstrip(), caption)


def standalone(plot: Plot) -> str:
    """The figure as a file of its own that needs no page: in the light palette, on white."""
    style = "background: white; stroke-linejoin: round; stroke-linecap: butt"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{FILE_WIDTH}" style="{style}" '
    svg = plot.svg.replace("<svg ", head, 1).replace(f"'{FONT}'", f"'{FONT}', sans-serif")
    return re.sub(r"var\(--([\w-]+)\)", lambda found: PALETTE[found[1]][0], svg) + "\n"


def css() -> str:
    """The palette as CSS variables, for light screens and paper, and for dark screens."""
    light, dark = (
        "".join(f"--{name}:{pair[side]};" for name, pair in PALETTE.items()) for side in (0, 1)
    )
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
