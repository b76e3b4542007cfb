"""A small corpus that espeak-ng speaks: many speakers, short commands, no download.

A speaker is a voice of espeak-ng (accent and variant) with a pitch, a range and a rate of its own,
a level, a background noise and a channel (a filter of three taps). Everything is drawn by speaker
from `fedspeech.seeding`: the same settings give the same bytes.
"""

import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from lhotse import CutSet

from fedspeech.config.corpus import CorpusSettings, SyntheticSettings
from fedspeech.corpus import jsonl
from fedspeech.corpus.cuts import SAMPLE_RATE
from fedspeech.errors import CorpusError
from fedspeech.progress import stage

VERSION = 1
"""Part of the cache folder's name; a change of what is spoken raises it."""


def prepare(settings: CorpusSettings) -> CutSet:
    """The corpus in the folder `path`, by default one in the cache; spoken first if need be.

    Every utterance carries `part`: "train" or "test". The cache is `$FEDSPEECH_CACHE`, by default
    `fedspeech` in the user's cache folder. Raises CorpusError where espeak-ng is not installed,
    where `path` holds something else, and where the disk does not take the corpus.
    """
    recipe = _recipe(settings.synthetic)
    folder = Path(settings.path) if settings.path is not None else _cache() / _name(recipe)
    if _is_free(folder):
        with _alone(folder):
            if _is_free(folder):
                _write(folder, settings.synthetic, recipe)
    _check(folder, recipe)
    return jsonl.prepare(settings.model_copy(update={"path": str(folder)}))


def _recipe(settings: SyntheticSettings) -> str:
    whole = {"recipe": "synthetic", "version": VERSION, **settings.model_dump(mode="json")}
    return json.dumps(whole, indent=1) + "\n"


def _name(recipe: str) -> str:
    return f"synthetic-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FEDSPEECH_CACHE") or Path(base) / "fedspeech")


def _is_free(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; a killed one leaves the lock to the next."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / f".{folder.name}.lock").open("w")
    except OSError as error:
        raise CorpusError(f"cannot write the corpus {folder}: {error}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check(folder: Path, recipe: str) -> None:
    made_by = folder / "recipe.json"
    try:
        found = made_by.read_text(encoding="utf-8")
    except OSError:
        raise CorpusError(f"{folder}: expected a synthetic corpus or an empty folder") from None
    if found != recipe:
        raise CorpusError(
            f"{made_by}: the corpus there was made with other settings; "
            "set corpus.path to another folder"
        )


def _write(folder: Path, settings: SyntheticSettings, recipe: str) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        entries = _speak_all(part, settings)
        lines = [json.dumps(entry) + "\n" for entry in entries]
        (part / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
        (part / "recipe.json").write_text(recipe, encoding="utf-8")
        part.rename(folder)
    except OSError as error:
        raise CorpusError(f"cannot write the corpus {folder}: {error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _speak_all(part: Path, settings: SyntheticSettings) -> list[dict[str, Any]]:
    # SciPy's filters take a second to load, and every worker imports the recipes
    from fedspeech.corpus import voices

    def speak(voice: voices.Voice) -> list[dict[str, Any]]:
        entries = []
        with closing(voices.Espeak()) as espeak:
            for entry, wave in voices.utterances(voice, settings, espeak.say):
                _write_flac(part / entry["audio"], wave)
                entries.append(entry)
        return entries

    speakers = voices.draw(settings)
    found = []
    with stage(len(speakers)) as shown, ThreadPoolExecutor(os.cpu_count()) as pool:
        shown.start("speaking the corpus", len(speakers))
        for entries in pool.map(speak, speakers):
            found += entries
            shown.advance(entries[0]["speaker"])
    return found


def _write_flac(path: Path, wave: npt.NDArray[np.float64]) -> None:
    encoded = io.BytesIO()  # libsndfile calls a full disk "System error."
    soundfile.write(encoded, wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded.getvalue())
