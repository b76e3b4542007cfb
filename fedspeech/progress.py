"""One live line per stage; plain lines, and few of them, where there is no terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

PLAIN_SECONDS = 15.0
"""At most one plain line in so many seconds, besides the last one of a stage."""

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[detail]}"),
)


class Stage:
    """A stage whose total may turn out larger as it goes."""

    def __init__(self, least: int) -> None:
        self._console = Console(stderr=True)
        self._least, self._total, self._done = least, least, 0
        self._name = self._detail = ""
        self._started = time.monotonic()
        self._said = self._started
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def start(self, name: str, total: int) -> None:
        """There are at least so many to do."""
        self._total = max(self._least, total)
        if not self._name and self._console.is_terminal:
            self._bar = Progress(*COLUMNS, console=self._console, transient=True)
            self._task = self._bar.add_task(name, total=self._total, detail="")
            self._bar.start()
        self._name = name
        if self._bar is not None:
            self._bar.update(self._task, total=self._total)

    def advance(self, detail: str) -> None:
        """One more is done; a word on how that went, or nothing."""
        self._done += 1
        self._detail = detail
        if self._bar is not None:
            self._bar.update(self._task, advance=1, detail=detail)
        elif time.monotonic() - self._said > PLAIN_SECONDS:
            self._said = time.monotonic()
            self._print(f"{self._name}: {self._done}/{self._total} {detail}".rstrip())

    def finish(self) -> None:
        """Leave one line with the time that the stage took and how the last step went."""
        if self._bar is not None:
            self._bar.stop()
        if self._name:
            seconds = time.monotonic() - self._started
            self._print(f"{self._name}: {self._done} in {seconds:.1f} s {self._detail}".rstrip())

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)


@contextmanager
def stage(least: int) -> Iterator[Stage]:
    """Show a stage of at least so many steps while the block runs."""
    shown = Stage(least)
    try:
        yield shown
    finally:
        shown.finish()
