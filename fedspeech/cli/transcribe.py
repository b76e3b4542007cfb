"""`fedspeech transcribe`: speech to text with a device's own model."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedspeech.cli.corpus import Channel
from fedspeech.errors import CorpusError


def transcribe(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A device's folder, or a safetensors file.")
    ],
    audio: Annotated[list[Path], typer.Argument(metavar="AUDIO...", help="What to listen to.")],
    channel: Channel = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print each word as soon as it is sure.")
    ] = False,
    beam: Annotated[
        int, typer.Option(min=1, metavar="WIDTH", help="Texts that an RNN-T follows at a time.")
    ] = 1,
) -> None:
    """Print what is said in some files, a line for each: its path, a tab, the text.

    A device recognizes its owner with the personal model that it holds, mixed with the base model
    as it chose. No server is asked. A file may have five minutes, also with `--stream`. The exit
    status is 1 where one could not be read.

    With `--stream` an RNN-T hears a file as if it were being spoken: its line grows word by word. A
    safetensors file has no speaker: how loud a file is in each band is measured before it begins.
    Models with `features.normalization = "utterance"` hear a file as a whole, and do not stream.
    With `--beam 16` it follows the sixteen likeliest texts instead of one, which is slower.

    Example: `fedspeech transcribe runs/demo/devices/s0001 hello.wav`
    """
    from fedspeech.device.transcribe import open_recognizer

    recognizer, errors = open_recognizer(model, beam), Console(stderr=True)
    _say(errors, f"model: {recognizer.about}")
    failed = False
    for path in audio:
        try:
            words = (
                recognizer.stream(path, channel)
                if stream
                else [recognizer.transcribe(path, channel)]
            )
        except CorpusError as error:
            failed = True
            _say(errors, str(error))
        else:
            _print(path, words)
    raise typer.Exit(int(failed))


def _print(path: Path, words: Iterable[str]) -> None:
    """One line, which grows as the words come."""
    typer.echo(f"{os.fsencode(path).decode(errors='replace')}\t", nl=False)
    for number, word in enumerate(words):
        typer.echo(f" {word}" if number else word, nl=False)
    typer.echo()


def _say(console: Console, line: str) -> None:
    console.print(f"fedspeech: {line}", highlight=False, markup=False, soft_wrap=True)
