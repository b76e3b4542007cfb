"""`fedspeech doctor`: what a machine offers for a run, or what a box needs to take part."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from fedspeech.cli.corpus import Channel
from fedspeech.errors import ConfigError

if TYPE_CHECKING:
    from fedspeech.finding import Finding


def doctor(
    server: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="From a box: the server to reach.")
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(readable=False, help="The certificate of the server's own CA (PEM)."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(readable=False, help="The box's private key (OpenSSH).")
    ] = None,
    speech: Annotated[
        Path | None, typer.Option(readable=False, help="The folder of the box's speech.")
    ] = None,
    channel: Channel = None,
    device: Annotated[
        Path, typer.Option(readable=False, help="Where the box keeps its models.")
    ] = Path(),
) -> None:
    """Say what this machine offers and what is missing; with a server, what a box needs.

    The exit status is 1 where something is missing that every run, or a box, needs.

    Example: `fedspeech doctor`, or on a box
    `fedspeech doctor --server asr.example.org:443 --ca ca.crt --key box.key`
    """
    console = Console()
    try:
        looked_at = _looked_at(server, ca, key, speech, channel, device)
    except ImportError as error:
        console.print(f"missing  {error}; install fedspeech anew", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None

    found: list[Finding] = []
    if console.is_terminal:
        with console.status("looking around"):
            found += looked_at
        table = Table(*(Column(name, overflow="fold") for name in ("", "what", "found", "to do")))
        for one in found:
            table.add_row(*map(Text, (one.status, one.name, one.found, one.todo)))
        console.print(table)
    else:
        for one in looked_at:
            found.append(one)
            console.print(str(one), highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(any(one.status == "missing" for one in found))


def _looked_at(
    server: str | None,
    ca: Path | None,
    key: Path | None,
    speech: Path | None,
    channel: int | None,
    device: Path,
) -> "Iterator[Finding]":
    if server is not None:
        from fedspeech import box, connection

        return box.findings(connection.address(server), ca, key, speech, channel, device)
    if given := [name for name, value in (("ca", ca), ("key", key), ("speech", speech)) if value]:
        raise ConfigError(f"--{given[0]} goes with --server")
    from fedspeech import doctor

    return doctor.findings()
