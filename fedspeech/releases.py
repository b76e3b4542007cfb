"""A line of models that follow one another: the first as a whole, each later one as a diff.

A folder with `line.json`: `[{"model": HASH, "file": "0000.safetensors", "description": HASH},
{"model": HASH, "file": "0001.diff", "of": HASH, "description": HASH}, …]`. The first model may lie
outside the folder. `HASH.json` is a description: what a model needs to be used.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedspeech import tensors
from fedspeech.diff.apply import apply
from fedspeech.diff.budget import exact
from fedspeech.diff.wire import result_of
from fedspeech.errors import DiffError, ModelError
from fedspeech.signing import hash_of
from fedspeech.tensors import Tensors, write_whole

LINE = "line.json"
Way = tuple[int, Sequence[bytes] | None]
"""Bytes in all, and the diffs that are sent, or None for the whole model."""


class Releases:
    """The models of one line, by their hashes. Raises ModelError where a file is damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[str, str], list[Way]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The hashes, the first model's first."""
        return tuple(str(one["model"]) for one in self._line())

    def begin(self, path: Path) -> str:
        """Start the line with the model in a safetensors file, which stays where it is."""
        name = tensors.sha256(tensors.read(path))
        self._known.clear()
        self._write([{"model": name, "file": os.path.relpath(path, self.folder)}])
        return name

    def add(self, after: str, result: str, data: bytes, of: str = "") -> None:
        """Let the model that a diff gives follow the one it is for; what came after that is gone.

        `of` is the hash of the model that the diff comes near to. Raises ModelError where `after`
        is not of the line.
        """
        self._known.clear()
        line = self._line()
        place = self._place(after) + 1
        file = f"{place:04}.diff"
        write_whole(self.folder / file, lambda part: part.write_bytes(data))
        self._write([*line[:place], {"model": result, "file": file, "of": of}])

    def describe(self, name: str, description: Mapping[str, Any]) -> None:
        """Note what a model of the line needs to be used.

        Raises ModelError where something else was noted: boxes may have it.
        """
        line, of = self._line(), hash_of(description)
        one = line[self._place(name)]
        if one.setdefault("description", of) != of:
            raise ModelError(
                f"{self.folder}: the release {name[:12]} has features or units other than these; "
                "name another folder"
            )
        text = json.dumps(description, ensure_ascii=False, indent=1) + "\n"
        write_whole(self.folder / f"{of}.json", lambda part: part.write_text(text, "utf-8"))
        self._write(line)

    def described(self, name: str) -> str:
        """The hash of a model's description. Raises ModelError where none was noted."""
        one = self._line()[self._place(name)]
        if "description" not in one:
            raise ModelError(f"{self.folder}: what the release {name[:12]} needs was not noted")
        return str(one["description"])

    def made_of(self, name: str) -> str | None:
        """The release that stands for a model: itself, or what a diff made of it; None without."""
        found = [one["model"] for one in self._line() if name in (one["model"], one.get("of"))]
        return found[-1] if found else None

    def model(self, name: str) -> Tensors:
        """A model of the line: the first one with the diffs that lead to it applied."""
        line, place = self._line(), self._place(name)
        model = tensors.read(self.folder / line[0]["file"])
        if tensors.sha256(model) != line[0]["model"]:
            raise ModelError(f"{self.folder / line[0]['file']}: damaged: its hash differs")
        for one, data in zip(line[1:], self._diffs(line[1 : place + 1]), strict=False):
            path = self.folder / one["file"]
            try:
                if (found := result_of(data)) != one["model"]:
                    raise ModelError(
                        f"{path}: gives the model {found[:12]}, and {LINE} says {one['model'][:12]}"
                    )
                model = apply(model, data)
            except DiffError as error:
                raise ModelError(f"{path}: {error}") from None
        return model

    def size(self, name: str) -> int:
        """Bytes of the diff that made a model of the line; 0 for the first one."""
        place = self._place(name)
        return sum(map(len, self._diffs(self._line()[place : place + 1]))) if place else 0

    def deliver(self, held: str, budget: int | None, to: str) -> tuple[bytes, ...] | None:
        """What brings a device that holds `held` to another model: diffs, or None for the whole.

        The chain of diffs or one direct diff, whichever has fewer bytes; the whole where that has
        fewest or `held` is not of the line. All of it together is within the budget, for which a
        whole model has the bytes of its tensors (as 1x says it), without their names. Raises
        DiffError where nothing is.
        """
        if (held, to) not in self._known:
            self._known[held, to] = list(self._ways(held, to))
        ways = self._known[held, to]
        within = [way for way in ways if budget is None or way[0] <= budget]
        if not within:
            least, _ = min(ways, key=lambda way: way[0])
            raise DiffError(
                f"it holds {held[:12] or 'no generation'}; what leads from there to "
                f"{to[:12]} has {least} bytes, and its budget is {budget} bytes"
            )
        _, diffs = min(within, key=lambda way: way[0])
        return None if diffs is None else tuple(diffs)

    def _ways(self, held: str, to: str) -> Iterator[Way]:
        model = self.model(to)
        yield tensors.size(model), None
        if held not in self.names:
            return
        first, last = self._place(held), self._place(to)
        chain = self._diffs(self._line()[first + 1 : last + 1])
        if first <= last:
            yield sum(map(len, chain)), chain
        # A device may also be ahead of a run that goes on with an earlier release.
        further = last - first not in (0, 1)
        if further and (data := exact(self.model(held), model)) is not None:
            yield len(data), [data]

    def _diffs(self, line: Sequence[dict[str, Any]]) -> list[bytes]:
        try:
            return [(self.folder / one["file"]).read_bytes() for one in line]
        except OSError as error:
            raise ModelError(f"{self.folder}: a release is missing: {error}") from None

    def _place(self, name: str) -> int:
        names = self.names
        if name not in names:
            raise ModelError(f"{self.folder}: no release {name[:12]}")
        return names.index(name)

    def _line(self) -> list[dict[str, Any]]:
        path = self.folder / LINE
        try:
            line = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: not readable: {error}") from None
        if not isinstance(line, list) or not all(map(_is_release, line)):
            raise ModelError(
                f"{path}: damaged: expected a list of releases, each with model and file"
            )
        return line

    def _write(self, line: Sequence[dict[str, Any]]) -> None:
        text = json.dumps(line, indent=1) + "\n"
        write_whole(self.folder / LINE, lambda part: part.write_text(text, encoding="utf-8"))


def _is_release(found: object) -> bool:
    return isinstance(found, dict) and all(isinstance(found.get(n), str) for n in ("model", "file"))
