"""`fedspeech corpus`: what speech there is, and what of it can be used."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedspeech.cli.experiment import File, Overrides
from fedspeech.cli.listing import say, show
from fedspeech.errors import ConfigError

if TYPE_CHECKING:
    from fedspeech.corpus.check import Checked

app = typer.Typer(no_args_is_help=True, help="Look at speech.")
Channel = Annotated[
    int | None,
    typer.Option(
        min=0,
        envvar="FEDSPEECH_CHANNEL",
        help="Which to take of recordings that have several.",
    ),
]
COLUMNS = ("file", "seconds", "usable", "why not, or what is done")


@app.command()
def check(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="One speaker's speech, or its manifest.")
    ],
    model: Annotated[
        Path | None,
        typer.Option(help="A device's folder or a model, to spell the transcripts with."),
    ] = None,
    channel: Channel = None,
) -> None:
    """Say of every file whether it can be used, and what is wrong with it where it cannot.

    The folder holds recordings with transcripts (a.wav and a.txt), or `manifest.jsonl`, or a cut
    set of Lhotse's. The exit status is 1 where something is wrong or nothing is usable.

    Example: `fedspeech corpus check my-speech`
    """
    from fedspeech.corpus.check import check as listen
    from fedspeech.corpus.one_speaker import entries

    units = None
    if model is not None:
        from fedspeech.device.transcribe import description_of

        units = description_of(model).units
    found = list(listen(entries(folder, channel), units))
    show(COLUMNS, [_row(one, folder) for one in found])
    usable = [one for one in found if one.cut is not None]
    seconds = sum(one.seconds for one in usable)
    say(f"\nusable: {len(usable)} of {len(found)}, {seconds:.1f} s")
    raise typer.Exit(int(len(usable) < len(found)))


def _row(one: "Checked", folder: Path) -> list[str]:
    within = f"{folder if folder.is_dir() else folder.parent}/"
    seconds = f"{one.seconds:.2f}" if one.cut is not None else ""
    cells = (one.where, seconds, "yes" if one.cut is not None else "no", one.fault or one.note)
    # Control characters of a file's name would be the terminal's.
    return [_printable(cell.replace(within, "")) for cell in cells]


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)


@app.command()
def stats(
    file: File,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """The paper's Table 1. Example: `fedspeech corpus stats experiments/an4.toml`."""
    from fedspeech import config, corpus
    from fedspeech.corpus import partition, statistics

    settings = config.load(file, overrides)
    if not isinstance(settings, config.Config):
        raise ConfigError(f"{file}: kind: expected personalization, found {settings.kind!r}")
    cut = partition.partition(corpus.load(settings.corpus), settings.partition)
    table = Table("part", "speakers", "utterances", "words", "hours", "seconds per speaker")
    for row in statistics.table(cut):
        each = row["seconds_per_speaker"]
        table.add_row(
            row["part"],
            str(row["speakers"]),
            str(row["utterances"]),
            str(row["words"]),
            f"{row['hours']:.2f}",
            f"{each['mean']:.0f} ({each['least']:.0f} … {each['most']:.0f})",
        )
    console = Console()
    console.print(table)
    for speaker, why in sorted(cut.left_out.items()):
        console.print(f"left out: {speaker}: {why}", highlight=False)


@app.command()
def prepare(
    file: File,
    out: Annotated[Path, typer.Option(help="Where the folders are written.")],
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Write an experiment's speech as folders: `public` for the server, one for each client's box.

    For trying out a deployment, or for handing a corpus out to boxes.

    Example: `fedspeech corpus prepare experiments/boxes.toml --out speech`
    """
    from fedspeech import config, corpus
    from fedspeech.corpus import handing_out, partition

    settings = config.load(file, overrides)
    if not isinstance(settings, config.Config):
        raise ConfigError(f"{file}: kind: expected personalization, found {settings.kind!r}")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: there is something already; name another folder (--out)")
    cut = partition.partition(corpus.load(settings.corpus), settings.partition)
    for folder, count in handing_out.hand_out(cut, out):
        say(f"{folder}: {count} utterances")
