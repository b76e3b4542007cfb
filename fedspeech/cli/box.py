"""`fedspeech box`: take part with the owner's speech, from an edge box."""

from pathlib import Path
from typing import Annotated

import typer

from fedspeech.cli.corpus import Channel


def box(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server to take part at.")],
    ca: Annotated[
        Path, typer.Option(readable=False, help="The certificate of the server's own CA (PEM).")
    ],
    key: Annotated[Path, typer.Option(readable=False, help="The box's private key (OpenSSH).")],
    speech: Annotated[
        Path,
        typer.Option(readable=False, help="The owner's recordings with transcripts; only read."),
    ],
    device: Annotated[Path, typer.Option(readable=False, help="Where the box keeps its models.")],
    channel: Channel = None,
    name: Annotated[
        str | None,
        typer.Option(help="Under which the server knows the owner; else drawn once and kept."),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT=BYTES",
            help="The most that a diff of this box may have: generic, base or personal = 500kB "
            "or 10x. Can be given for each.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="That training may use.")] = 1,
    nice: Annotated[
        int | None, typer.Option(min=0, max=19, help="How far training gives way to all else.")
    ] = None,
) -> None:
    """Take part in runs, until it is stopped. What has been said never leaves the box.

    Where the server cannot be reached, or does not let it in, it tries again and again and says
    why, as `fedspeech doctor --server` does. `fedspeech transcribe` works all the while.

    Example: `fedspeech box --server asr.example.org:443 --ca ca.crt --key box.key --speech
    recordings --device /var/lib/fedspeech`
    """
    from fedspeech import apps, budgets, connection, node_key
    from fedspeech.corpus.one_speaker import entries
    from fedspeech.device import identity

    connection.address(server)
    connection.trusting(ca)
    node_key.read(key)
    own = budgets.parse_own(budget or ())
    next(entries(speech, channel), None)
    identity.settle(device, name, own)
    settings: dict[str, str | int] = {
        "device": str(device.absolute()),
        "speech": str(speech.absolute()),
        "threads": threads,
    }
    given = {"channel": channel, "nice": nice}
    settings.update({option: value for option, value in given.items() if value is not None})
    apps.find("box").load()(server, str(ca), str(key), connection.free_port(), settings)
