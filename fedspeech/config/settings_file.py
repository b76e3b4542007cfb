"""Settings files: TOML that may derive from another file, overrides, and where a setting was made.

`extends = "personalization.toml"` names the file to derive from, relative to the one that says so.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedspeech.errors import ConfigError

WHOLE = {"train", "test", "domains"}
"""Tables that replace those of the file below: the ways to choose train_s, or what tests, exclude
each other, and domains are a list with names."""


def read(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], list[Path]]:
    """The settings of a file and of those that it extends, and these files, the nearest first.

    Raises ConfigError where one is missing or not TOML; `above` are the files that extend it.
    """
    if path.resolve() in [file.resolve() for file in above]:
        raise ConfigError(f"{path}: extends itself")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        whose = f" ({above[-1]} extends it)" if above else ""
        raise ConfigError(f"{path}: no such file{whose}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not readable as TOML: {error}") from None
    base = table.pop("extends", None)
    if base is None:
        return table, [path]
    if not isinstance(base, str):
        line = _line(path, ["extends"])
        raise ConfigError(f"{path}{line}: extends: expected the name of a file, found {base!r}")
    below, paths = read(path.parent / base, (*above, path))
    return _merge(below, table), [path, *paths]


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict) and key not in WHOLE:
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def override(table: dict[str, Any], setting: str) -> None:
    """Set what `section.key=value` says; a value that is not TOML is taken as a string."""
    name, equals, text = setting.partition("=")
    keys = keys_of(name)
    if not equals or not keys:
        raise ConfigError(f"--set {setting}: expected section.key=value, names as in TOML")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = keys
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {setting}: {section} is not a section")
    table[last] = value


def where(keys: Sequence[str], paths: Sequence[Path], overrides: Sequence[str]) -> str:
    """What set it: an override, or the line of a file, nearest first; else the line of its section;
    else the nearest file.
    """
    for setting in reversed(overrides):
        set_there = keys_of(setting.partition("=")[0])
        if keys and all(ours == theirs for ours, theirs in zip(keys, set_there, strict=False)):
            return f"--set {setting}"
    names = (keys[:count] for count in range(len(keys), 0, -1))
    lines = ((path, _line(path, name)) for name in names for path in paths)
    return next((f"{path}{line}" for path, line in lines if line), str(paths[0]))


def _line(path: Path, keys: Sequence[str]) -> str:
    """`:LINE` of the setting, as near as a scan of headers and keys finds it, or nothing."""
    names = [key for key in keys if not key.isdigit()]
    if not names:
        return ""
    section: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    for number, line in enumerate(lines, 1):
        if header := re.match(r"\s*\[([^\[\]]+)\]", line):
            section = keys_of(header[1])
            if section[: len(names)] == names:
                return f":{number}"
        elif "=" in line and (setting := keys_of(line.partition("=")[0])):
            full = [*section, *setting]
            if full == names[: len(full)]:
                return f":{number}"
    return ""


def dotted(keys: Sequence[str]) -> str:
    """A name as TOML writes it: `section."a.key".other`."""
    return ".".join(key if re.fullmatch(r"[\w-]+", key) else f'"{key}"' for key in keys)


def keys_of(name: str) -> list[str]:
    """The keys of a dotted name as TOML writes it; none where it is no name."""
    try:
        table: Any = tomllib.loads(f"{name} = 0")
    except tomllib.TOMLDecodeError:
        return []
    keys: list[str] = []
    while isinstance(table, dict) and table:
        key, table = next(iter(table.items()))
        keys.append(key)
    return keys
