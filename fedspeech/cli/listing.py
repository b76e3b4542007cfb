"""Rows as a table in a terminal, as plain lines elsewhere."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text


def show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the rows; elsewhere than in a terminal each is a line, whole, in columns."""
    console = Console()
    if console.is_terminal:
        table = Table(*(Column(name, overflow="fold") for name in columns))
        for row in rows:
            table.add_row(*map(Text, row))  # a name may have brackets, which would be markup
        console.print(table)
        return
    lines = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        say("  ".join(cells).rstrip())


def say(line: str) -> None:
    """Print a line as it is."""
    Console().print(line, highlight=False, markup=False, soft_wrap=True)
