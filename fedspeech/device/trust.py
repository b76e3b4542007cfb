"""Whose releases a device takes, and how far it has come: never back, whoever asks."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedspeech.errors import SignatureError
from fedspeech.signing import (
    RELEASE,
    ROTATION,
    Release,
    hash_of,
    read_release,
    read_rotation,
    signer,
)
from fedspeech.tensors import private_folder, write_whole

TRUST = "trust.json"
KEY, LEFT, LINE, LINES = "key", "left", "line", "lines"


def check(
    folder: Path, statements: Sequence[str], model: str, description: Mapping[str, Any]
) -> None:
    """Let a device's folder take a release of G, as it was sent with its statements.

    Where no key is pinned everything is taken. Raises SignatureError unless the pinned key, or one
    that took over from it, has signed that this model with this description is a release of the
    line that the device follows, and none older than before.
    """
    trust = Trust(folder)
    if trust.key is None:
        return
    sent = [text.encode() for text in statements]
    trust.follow(data for data in sent if data.startswith(ROTATION.encode()))
    signed = next((data for data in sent if data.startswith(RELEASE.encode())), b"")
    trust.accept(signed, model, hash_of(description))


class Trust:
    """`trust.json` in a device's folder: the pinned key, those it has left, the line of releases
    that it follows, and the last that it took of each.

    All methods raise SignatureError where the file is damaged; then nothing is taken.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TRUST

    @property
    def key(self) -> str | None:
        """The pinned public key, 64 hexadecimal digits."""
        key = self._state()[KEY]
        return None if key is None else str(key)

    def pin(self, key: str, line: str | None = None) -> None:
        """Trust a public key from now on, and follow a line; else the first that it signs for.

        Raises SignatureError where another key is pinned.
        """
        state = self._state()
        if state[KEY] not in (None, key):
            raise SignatureError(f"{self._path}: the key {str(state[KEY])[:12]} is pinned already")
        private_folder(self._path.parent)
        self._write({**state, KEY: key, LINE: line or state[LINE]})

    def follow(self, rotations: Iterable[bytes]) -> str:
        """Go on from the pinned key to the one that takes over from it, and so on; the last one.

        The order of the statements does not matter; what does not begin at a key that is trusted
        by then is passed over. Raises SignatureError where a statement is damaged, wrongly signed,
        or leads back to a key that was left.
        """
        state = self._pinned()
        sent = list(rotations)
        while (data := next((d for d in sent if signer(d) == state[KEY]), None)) is not None:
            new = read_rotation(data, state[KEY]).new
            left = [*state[LEFT], state[KEY]]
            if new in left:
                raise SignatureError(f"the key {new[:12]} counts no more")
            state = {**state, KEY: new, LEFT: left}
        self._write(state)
        return str(state[KEY])

    def accept(self, signed: bytes, model: str, description: str) -> Release:
        """What a statement says of the model that came with it, once that is written down.

        Raises SignatureError where it is unsigned, signed by another key, of another line or model,
        or older than what was accepted before; DiskError where it cannot be written down.
        """
        state = self._pinned()
        release = read_release(signed, state[KEY])
        line = release.line
        if state[LINE] not in (None, line):
            raise SignatureError(
                f"line: signed for {line!r}, and this device follows {state[LINE]!r}; its owner "
                "may change that: `fedspeech keys pin --line`"
            )
        came = {"model": model, "description": description}
        for name, expected in came.items():
            if (found := getattr(release, name)) != expected:
                raise SignatureError(f"{name}: signed for {found!r}, expected {expected!r}")
        self._check_newer(release, state[LINES].get(line))
        last = {"sequence": release.sequence, **came}
        self._write({**state, LINE: line, LINES: {**state[LINES], line: last}})
        return release

    def _check_newer(self, release: Release, last: dict[str, Any] | None) -> None:
        if last is None or release.sequence > last["sequence"]:
            return
        if release.sequence < last["sequence"]:
            raise SignatureError(
                f"release {release.sequence} of {release.line!r} is older than "
                f"{last['sequence']}, which this device has accepted"
            )
        if (release.model, release.description) != (last["model"], last["description"]):
            raise SignatureError(
                f"release {release.sequence} of {release.line!r} was another model before"
            )

    def _pinned(self) -> dict[str, Any]:
        state = self._state()
        if state[KEY] is None:
            raise SignatureError(f"{self._path}: no key is pinned")
        return state

    def _state(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            lists = {LEFT: list(found[LEFT]), LINES: dict(found[LINES])}
            return {KEY: found[KEY], LINE: found[LINE], **lists}
        except FileNotFoundError:
            return {KEY: None, LINE: None, LEFT: [], LINES: {}}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise SignatureError(f"{self._path}: not readable: {error!r}") from None

    def _write(self, state: dict[str, Any]) -> None:
        text = json.dumps(state, sort_keys=True, indent=1) + "\n"
        write_whole(self._path, lambda part: part.write_text(text, encoding="utf-8"))
