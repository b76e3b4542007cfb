"""`fedspeech device`: what a device holds, to the next generation and back to the one before."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedspeech.cli.listing import say, show
from fedspeech.errors import ModelError

if TYPE_CHECKING:
    from fedspeech.device.store import Store

app = typer.Typer(no_args_is_help=True, help="The models that a device holds.")

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a device.")]
COLUMNS = ("role", "generation", "bytes", "file", "before", "hash")
SHORT = 12
"""Letters of a hash that tell generations apart."""


@app.command()
def status(folder: Folder) -> None:
    """Show the models that a device holds, and those that it can go back to.

    Example: `fedspeech device status runs/demo/devices/s0001`
    """
    show(COLUMNS, list(_rows(_store(folder))))


def _rows(store: "Store") -> Iterator[list[str]]:
    from fedspeech.device.store import ROLES

    state = store.state()
    for role in ROLES:
        if (name := state.get(role)) is not None:
            size = f"{store.file(name).stat().st_size:,}" if store.hash(role) else ""
            before = (store.previous(role) or "")[:SHORT]
            yield [role, name[:SHORT], size, _found(store, role), before, name]


def _found(store: "Store", role: str) -> str:
    from fedspeech.device.store import DIFFERENCE

    if store.hash(role) is None:
        return "missing"
    if role == DIFFERENCE and not store.fits():
        return "of another G"
    return "whole" if store.holds(role) else "damaged"


@app.command()
def update(
    folder: Folder,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="X.diff, or a whole model: X.safetensors.")
    ],
    signed: Annotated[
        list[Path],
        typer.Option(metavar="STATEMENT", help="X.signed; also each X.rotation."),
    ] = [],  # noqa: B006  (Typer copies it)
    description: Annotated[
        Path | None, typer.Option(metavar="JSON", help="What the model needs; else as before.")
    ] = None,
) -> None:
    """Take a release of G out of a file, without a server; where a key is pinned, a signed one.

    The files are those of a folder of releases: `0001.diff`, `0001.signed`, and the description by
    its hash. Who is recognized with a personal model goes on with that.

    Example: `fedspeech device update /var/lib/fedspeech 0001.diff --signed 0001.signed`
    """
    from fedspeech import signed_line
    from fedspeech.device import update as updates
    from fedspeech.device.personal import usual
    from fedspeech.models import description as descriptions

    statements = [signed_line.read(path) for path in signed]
    about = None if description is None else descriptions.read(description).to_json()
    say(f"generic: {updates.update(folder, file, statements, about)}")
    say(f"the owner is recognized with {usual(_store(folder)).about}")


@app.command()
def rollback(
    folder: Folder,
    role: Annotated[
        str | None,
        typer.Option(help="generic or recognizer; else what the owner is recognized with."),
    ] = None,
) -> None:
    """Go back to the model before the last update.

    Where a recognizer was installed it is the one before, with all that belongs to it; else G.

    Example: `fedspeech device rollback runs/demo/devices/s0001`
    """
    from fedspeech.device.lock import locked
    from fedspeech.device.store import GENERIC, KEPT, RECOGNIZER

    if role not in (None, *KEPT):
        raise ModelError(f"--role: expected {' or '.join(KEPT)}, found {role!r}")
    store = _store(folder)
    with locked(store.folder, wait=False):
        role = role or (GENERIC if store.hash(RECOGNIZER) is None else RECOGNIZER)
        say(f"{role}: {store.rollback(role)}")


def _store(folder: Path) -> "Store":
    from fedspeech.device.personal import open_store

    return open_store(folder)
