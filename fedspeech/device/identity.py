"""Who a box's owner is to the server, and what the link may carry: kept in `device.json`.

The name says nothing.
"""

import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedspeech.errors import ConfigError
from fedspeech.tensors import private_folder, try_writing, write_whole

ABOUT = "device.json"
NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
NAME_BYTES = 8


def settle(folder: Path, name: str | None = None, budgets: Mapping[str, str] | None = None) -> str:
    """The name of a device's folder; where it has none yet, the one given or a drawn one.

    A drawn one is no experiment's: it comes from the system, so that nobody can try out names.
    `budgets` are the device's own from now on, which `query.describe` tells (`fedspeech.budgets`).
    Raises ConfigError where the name cannot be used or the folder has another one, DiskError where
    the folder cannot be written.
    """
    if name is not None and not NAME.fullmatch(name):
        raise ConfigError(f"--name: expected letters, digits, '_', '.' and '-', found {name!r}")
    known = _known(folder / ABOUT)
    if known is not None and name not in (None, known["speaker"]):
        raise ConfigError(f"{folder / ABOUT}: this is {known['speaker']}'s device, not {name}'s")
    about = {"speaker": name or f"box-{secrets.token_hex(NAME_BYTES)}", **(known or {})}
    about["budgets"] = dict(budgets or {})
    private_folder(folder)
    if about == known:
        try_writing(folder)
    else:
        text = json.dumps(about) + "\n"
        write_whole(folder / ABOUT, lambda part: part.write_text(text, encoding="utf-8"))
    return str(about["speaker"])


def _known(path: Path) -> dict[str, Any] | None:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return {**about, "speaker": str(about["speaker"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: damaged, nobody's device: {error}") from None
