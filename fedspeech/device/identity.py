"""Who a box's owner is to the server: a name that says nothing, kept in `device.json`."""

import json
import re
import secrets
from pathlib import Path

from fedspeech.errors import ConfigError
from fedspeech.tensors import private_folder, try_writing, write_whole

ABOUT = "device.json"
NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
NAME_BYTES = 8


def settle(folder: Path, name: str | None = None) -> str:
    """The name of a device's folder; where it has none yet, the one given or a drawn one.

    A drawn one is no experiment's: it comes from the system, so that nobody can try out names.
    Raises ConfigError where the name cannot be used or the folder has another one, DiskError where
    the folder cannot be written.
    """
    if name is not None and not NAME.fullmatch(name):
        raise ConfigError(f"--name: expected letters, digits, '_', '.' and '-', found {name!r}")
    if (known := _known(folder / ABOUT)) is not None:
        if name not in (None, known):
            raise ConfigError(f"{folder / ABOUT}: this is {known}'s device, not {name}'s")
        try_writing(folder)
        return known
    chosen = name or f"box-{secrets.token_hex(NAME_BYTES)}"
    text = json.dumps({"speaker": chosen}) + "\n"
    private_folder(folder)
    write_whole(folder / ABOUT, lambda part: part.write_text(text, encoding="utf-8"))
    return chosen


def _known(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["speaker"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: damaged, nobody's device: {error}") from None
