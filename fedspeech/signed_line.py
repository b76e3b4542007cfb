"""The statements that go with the releases of a line: one for each, and those of its keys.

They lie in the folder of the line: `0001.signed` beside `0001.diff`, and every `*.rotation` that
`fedspeech keys rotate` has made.
"""

from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedspeech.errors import SignatureError
from fedspeech.releases import Releases
from fedspeech.signing import NO_BASE, Release, public, read_release, sign_release
from fedspeech.tensors import write_whole


def sign(line: Releases, key: Ed25519PrivateKey) -> list[str]:
    """Sign the releases of a line that are not signed yet; their hashes. The line is called as its
    folder is, and the first release is number 1.

    Raises ModelError where a release lacks its description, DiskError where a statement cannot be
    written.
    """
    names = line.names
    if unsigned := [place for place in range(len(names)) if not _is_signed(line, place, key)]:
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for place in unsigned:
            base = names[place - 1] if place else NO_BASE
            what = names[place], line.described(names[place])
            said = Release(line.folder.resolve().name, place + 1, *what, base, time)
            _write(_file(line, place), sign_release(said, key))
    return [names[place] for place in unsigned]


def statements(line: Releases, name: str) -> list[str]:
    """What a device is sent with a release: who signs now, and that this is a release.

    Nothing where it is not signed. Raises SignatureError where a file cannot be read.
    """
    names = line.names
    file = _file(line, names.index(name)) if name in names else None
    if file is None or not file.exists():
        return []
    return [read(path) for path in (*sorted(line.folder.glob("*.rotation")), file)]


def _is_signed(line: Releases, place: int, key: Ed25519PrivateKey) -> bool:
    """Whether a release's statement is of this model; that of another branch is not, nor one of
    the form of an earlier version."""
    try:
        said = read_release(_file(line, place).read_bytes(), public(key))
    except (OSError, SignatureError):
        return False
    return (said.model, said.sequence) == (line.names[place], place + 1)


def _file(line: Releases, place: int) -> Path:
    return line.folder / f"{place:04}.signed"


def read(path: Path) -> str:
    """The statement in a file, unverified. Raises SignatureError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SignatureError(f"{path}: cannot be read: {error}") from None


def _write(path: Path, data: bytes) -> None:
    write_whole(path, lambda part: part.write_bytes(data))
