"""`fedspeech keys`: the keys that sign releases, and the one that a device trusts."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fedspeech.cli.listing import say

app = typer.Typer(no_args_is_help=True, help="Keys that sign releases.")

KeyFile = Annotated[Path, typer.Argument(metavar="KEY", help="The file of a private key.")]


@app.command()
def make(key: KeyFile) -> None:
    """Write a new private key to KEY and its public key to KEY.pub.

    Example: `fedspeech keys make release.key`
    """
    from fedspeech import key_files, signing

    made = key_files.make_key(key)
    say(f"{key}: keep it secret; {key_files.public_file(key)} is for devices to pin")
    say(signing.public(made))


@app.command()
def rotate(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The private key that is left.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Where the new one is written.")],
) -> None:
    """Make a new key, and let the old one sign that it takes over: NEW.rotation.

    Example: `fedspeech keys rotate release.key release-2.key`
    """
    from fedspeech import key_files, signing
    from fedspeech.tensors import write_whole

    signed_by = key_files.read_private(old)
    made = signing.public(key_files.make_key(new))
    time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    signed = signing.sign_rotation(signing.Rotation(made, time), signed_by)
    path = new.with_name(f"{new.name}.rotation")
    write_whole(path, lambda part: part.write_bytes(signed))
    say(f"{path}: devices that trust {signing.public(signed_by)} go on to")
    say(made)


@app.command()
def show(key: KeyFile) -> None:
    """Print the public key of a private or public key's file.

    Example: `fedspeech keys show release.key.pub`
    """
    from fedspeech import key_files, signing

    say(signing.public(key_files.read_any(key)))


@app.command()
def pin(
    device: Annotated[Path, typer.Argument(metavar="DEVICE", help="The folder of a device.")],
    key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="The file of a public key.")],
    line: Annotated[
        str | None, typer.Option(help="The line to follow; else the first that is accepted.")
    ] = None,
) -> None:
    """Let a device take no releases but those that this key signs, and of one line only.

    Example: `fedspeech keys pin /var/lib/fedspeech release.key.pub`
    """
    from fedspeech import key_files, signing
    from fedspeech.device.trust import Trust

    public = signing.public(key_files.read_public(key))
    Trust(device).pin(public, line)
    say(f"{device}: pinned {public}")


@app.command()
def sign(
    line: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of `generic.releases`.")],
    key: KeyFile,
) -> None:
    """Sign the releases of a line that are not signed yet, for devices that have pinned the key.

    Example: `fedspeech keys sign releases release.key`
    """
    from fedspeech import key_files, signed_line
    from fedspeech.device.lock import locked
    from fedspeech.errors import ModelError
    from fedspeech.releases import LINE, Releases

    if not (line / LINE).exists():
        raise ModelError(f"{line}: no line of releases here; expected {LINE}")
    with locked(line):
        signed = signed_line.sign(Releases(line), key_files.read_private(key))
    for name in signed:
        say(f"signed {name}")
    say(f"{len(signed)} releases signed")
