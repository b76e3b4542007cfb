"""`fedspeech transcribe`: speech to text with a device's own model."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedspeech.errors import CorpusError


def transcribe(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A device's folder, or a safetensors file.")
    ],
    audio: Annotated[list[Path], typer.Argument(metavar="AUDIO...", help="What to listen to.")],
    channel: Annotated[
        int | None, typer.Option(min=0, help="Which to take of recordings that have several.")
    ] = None,
) -> None:
    """Print what is said in some files, a line for each: its path, a tab, the text.

    A device recognizes its owner with the personal model that it holds, mixed with the base model
    as it chose. No server is asked. The exit status is 1 where a file could not be read.

    Example: `fedspeech transcribe runs/demo/devices/s0001 hello.wav`
    """
    from fedspeech.device.transcribe import open_recognizer

    recognizer, errors = open_recognizer(model), Console(stderr=True)
    _say(errors, f"model: {recognizer.about}")
    failed = False
    for path in audio:
        try:
            text = recognizer.transcribe(path, channel)
        except CorpusError as error:
            failed = True
            _say(errors, str(error))
        else:
            typer.echo(f"{os.fsencode(path).decode(errors='replace')}\t{text}")
    raise typer.Exit(int(failed))


def _say(console: Console, line: str) -> None:
    console.print(f"fedspeech: {line}", highlight=False, markup=False, soft_wrap=True)
