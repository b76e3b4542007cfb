"""One live line per stage; plain lines, and few of them, where there is no terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from fedspeech import interrupts

PLAIN_SECONDS = 15.0
"""At most one plain line in so many seconds, besides the last one of a stage."""


class Stage:
    """A stage of `total` steps; 0 where nobody knows how many there will be."""

    def __init__(self, total: int) -> None:
        self._console = Console(stderr=True)
        self._total = total
        self._done = self._before = 0
        self._name = self._detail = ""
        self._started = self._last = self._said = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def start(self, name: str, least: int = 0) -> None:
        """What is done from now on is called so; there are at least so many to do."""
        interrupts.check()
        self._total = max(self._total, least)
        if not self._name and self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), _Told(self))
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(name, total=self._total or None)
            self._bar.start()
        self._name = name
        if self._bar is not None:
            self._bar.update(self._task, total=self._total or None)

    def skip(self) -> None:
        """One more was done in an earlier run: it says nothing about the pace."""
        self._before += 1
        self._count("")

    def advance(self, detail: str) -> None:
        """One more is done; a word on how that went, or nothing."""
        self._last = time.monotonic()
        self._count(detail)

    def tell(self, detail: str) -> None:
        """How what is being done comes on."""
        self._show(detail, 0)

    def _count(self, detail: str) -> None:
        self._done += 1
        self._show(detail, 1)

    def _show(self, detail: str, done: int) -> None:
        interrupts.check()
        self._detail = detail
        if self._bar is not None:
            self._bar.update(self._task, advance=done)
        elif time.monotonic() - self._said > PLAIN_SECONDS:
            self._said = time.monotonic()
            self._print(f"{self._name}: {self.told()}")

    def told(self) -> str:
        """How far the stage is, how fast it goes, what is left and how the last step went."""
        said = [f"{self._done}/{self._total}" if self._total else f"{self._done}"]
        if (each := self._seconds_each()) > 0:
            said.append(_pace(each))
            waited = time.monotonic() - self._last
            left = max(0.0, (self._total - self._done) * each - waited)
            said += [f"{_duration(left)} left"] if self._total else []
        return ", ".join([*said, self._detail] if self._detail else said)

    def finish(self) -> None:
        """Leave one line with the time that the stage took and how the last step went."""
        if self._bar is not None:
            self._bar.stop()
        if not self._name:
            return
        said = [f"{self._name}: {self._done} in {time.monotonic() - self._started:.1f} s"]
        if (each := self._seconds_each()) > 0:
            said.append(_pace(each))
        self._print(", ".join([*said, self._detail] if self._detail else said))

    def _seconds_each(self) -> float:
        """Of what was done in this run; 0 where nothing was."""
        fresh = self._done - self._before
        return (self._last - self._started) / fresh if fresh else 0.0

    def _print(self, line: str) -> None:
        say(line, self._console)


def say(line: str, console: Console | None = None) -> None:
    """One line that stays, above the live one."""
    console = console or Console(stderr=True)
    console.print(line, highlight=False, markup=False, soft_wrap=True)


class _Told(ProgressColumn):
    """What a plain line would say now."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def render(self, task: Task) -> Text:
        return Text(self._stage.told())


def _pace(seconds_each: float) -> str:
    return f"{1 / seconds_each:.3g}/s" if seconds_each < 1 else f"{seconds_each:.3g} s each"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


@contextmanager
def stage(total: int) -> Iterator[Stage]:
    """Show a stage of so many steps while the block runs; 0 where that is not known."""
    shown = Stage(total)
    try:
        yield shown
    finally:
        shown.finish()
