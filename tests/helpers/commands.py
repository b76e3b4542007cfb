"""The `fedspeech` command as a process of its own, and waiting for what it does."""

import sys
import time
from collections.abc import Callable
from pathlib import Path


def command(what: str, file: Path, out: Path, *more: str) -> list[str]:
    """`fedspeech WHAT FILE --out OUT`, by this Python."""
    code = "from fedspeech.cli import main; main()"
    return [sys.executable, "-c", code, what, str(file), "--out", str(out), *more]


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait for something; fails where it takes longer."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def going_on(folder: Path) -> list[str]:
    """What makes a command go on with the run of a folder, where one has begun."""
    return ["--resume"] if (folder / "config.toml").exists() else []
