"""Pieces of the HTML page; every text that comes from a run is escaped here."""

import re
from collections.abc import Sequence
from html import escape

from fedspeech.report.canvas import Plot
from fedspeech.report.tables import Estimate, Table

LONGEST_WHOLE = 24
"""A name of at most so many letters is not broken at its hyphens."""

MINUS = re.compile(r"(?<!\w)-(?=\d)")
"""A sign before a number, not a hyphen of a word."""


def table(table: Table, empty: str = "") -> str:
    """A <table> that scrolls sideways where it is too wide, with its notes below.

    Without rows or columns of its own, the sentence `empty`.
    """
    if table.empty:
        return paragraph(empty) if empty else ""
    title = escape(table.title)
    head = "".join(_cell("th", name, i < table.words) for i, name in enumerate(table.columns))
    rows = "\n".join(_row(table, number) for number in range(len(table.rows)))
    notes = "".join(f'\n<p class="note">{escape(note)}</p>' for note in table.notes)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table>\n'
        f"<caption>{title}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody></table></div>{notes}"
    )


def _row(table: Table, number: int) -> str:
    cells = table.rows[number]
    name = str(cells[0])
    whole = ' class="whole"' if " " not in name and len(name) <= LONGEST_WHOLE else ""
    first = f'<th scope="row"{whole}>{escape(name)}</th>'
    rest = "".join(_cell("td", cell, i < table.words) for i, cell in enumerate(cells[1:], 1))
    marked = ' class="marked"' if number in table.marked else ""
    return f"<tr{marked}>{first}{rest}</tr>"


def _cell(tag: str, cell: str | Estimate, words: bool) -> str:
    side = "" if words else ' class="number"'
    scope = ' scope="col"' if tag == "th" else ""
    content = _content(cell) if words else MINUS.sub("−", _content(cell))
    return f"<{tag}{scope}{side}>{content}</{tag}>"


def _content(cell: str | Estimate) -> str:
    if isinstance(cell, str):
        return escape(cell)
    mean, low, high = cell.texts()
    return f"<b>{mean}</b> <small>{low} to {high}</small>"


def figure(plot: Plot | None, title: str, empty: str) -> str:
    """A <figure> with its caption; without a plot, the sentence `empty`."""
    if plot is None:
        return paragraph(f"{title}: {empty}")
    caption = f"<b>{escape(title)}.</b> {escape(plot.caption)}"
    return f"<figure>\n{plot.svg}\n<figcaption>{caption}</figcaption>\n</figure>"


def tile(name: str, value: str, below: str) -> str:
    """One key number."""
    return (
        f"<div><dt>{escape(name)}</dt><dd><b>{escape(value)}</b> "
        f"<small>{escape(below)}</small></dd></div>"
    )


def details(summary: str, content: str) -> str:
    """Content that opens on demand; nothing where there is none."""
    if not content:
        return ""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>\n"


def settings(config: str, environment: Table) -> str:
    """What a run was told, and where it ran."""
    return joined(
        [
            details("Settings (config.toml)", code(config)),
            details("Environment (environment.json)", table(environment)),
        ]
    )


def code(text: str) -> str:
    """Text as it is, in fixed width."""
    return f"<pre>{escape(text)}</pre>" if text else ""


def paragraph(text: str) -> str:
    """One paragraph."""
    return f"<p>{escape(text)}</p>"


def joined(pieces: Sequence[str]) -> str:
    """Pieces one below the other; empty ones are left out."""
    return "\n".join(piece for piece in pieces if piece)
