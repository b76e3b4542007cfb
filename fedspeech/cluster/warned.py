"""What workers on Ray warn of: nobody sees what they log, so it comes with their answers."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LOG = logging.getLogger("fedspeech")


class _Keeping(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


@contextmanager
def kept(lines: list[str]) -> Iterator[None]:
    """Add what fedspeech warns of in the block to some lines."""
    handler = _Keeping(lines)
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)


class Told:
    """Warnings of workers that were told; each is told once, however many workers it is of."""

    def __init__(self) -> None:
        self._lines: set[str] = set()

    def tell(self, lines: Iterable[str]) -> None:
        """Warn of what was not told before."""
        for line in lines:
            if line not in self._lines:
                self._lines.add(line)
                LOG.warning("%s", line)
