"""The page of a run that is nothing but trainings: tiles, sections, and how to read them."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from fedspeech.report import markup, run_tables
from fedspeech.report.canvas import Plot
from fedspeech.report.run_folder import RunFolder, Timing
from fedspeech.report.tables import Table

Figures = Mapping[str, Plot | None]
"""All figures of a run by their titles; None where there is nothing to draw."""
NARROW = 6
"""Columns of a table that half of the page has room for."""
INTERVALS = (
    "The 95 % intervals come from resampling seeds and speakers, then the utterances of each "
    "speaker: what fails with one of three seeds has a wide interval."
)


class Section(NamedTuple):
    """A title, and what stands side by side below it, as HTML."""

    title: str
    columns: Sequence[str]


def body(
    tiles: Sequence[str],
    about: str,
    sections: Sequence[Section],
    how_to_read: Sequence[str],
    run: RunFolder,
) -> str:
    """Everything below the header; `tiles` are HTML, `about` says what they show."""
    environment = run_tables.environment(run.environment)
    pieces = [
        f'<dl class="tiles">\n{markup.joined(tiles)}\n</dl>',
        f'<p class="note">{escape(about)}</p>',
        *(_section(each.title, _pair(each.columns)) for each in sections),
        _section(
            "How to read this page",
            f"{_listed(how_to_read)}\n{markup.settings(run.config, environment)}",
        ),
    ]
    return "\n\n".join(pieces) + "\n"


def figure(figures: Figures, title: str, empty: str = "") -> str:
    """One of a run's figures; without a plot, the sentence `empty`."""
    return markup.figure(figures[title], title, empty)


def tables(*found: Table) -> str:
    """Tables one below the other, as one column, or across both where one has many of its own."""
    width = ' class="wide"' if any(len(table.columns) > NARROW for table in found) else ""
    return f"<div{width}>\n{markup.joined([markup.table(table) for table in found])}\n</div>"


def time(run: RunFolder, stages_alone: bool = False) -> str:
    """How long a run took, as one column."""
    timing = Timing(stages=run.timing.stages) if stages_alone else run.timing
    return (
        f"<div>\n{markup.table(run_tables.timing(timing), 'The run has no timing.json.')}\n</div>"
    )


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def _pair(columns: Sequence[str]) -> str:
    return f'<div class="pair">\n{markup.joined(columns)}\n</div>'


def _listed(lines: Sequence[str]) -> str:
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>\n{items}\n</ul>"
