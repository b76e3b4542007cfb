"""LibriSpeech and Mini LibriSpeech (openslr.org/12 and /31), by Lhotse's recipe.

`path` is the folder `LibriSpeech`, with all parts that are there, or one part (`train-clean-5`).
"""

from pathlib import Path

from lhotse import CutSet
from lhotse.recipes import prepare_librispeech
from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH

from fedspeech.config.corpus import CorpusSettings
from fedspeech.corpus.lhotse_recipes import convert, errors_of_lhotse
from fedspeech.errors import CorpusError


def prepare(settings: CorpusSettings) -> CutSet:
    """The utterances in the order of their ids; each carries `part`.

    Raises CorpusError where `path` is not LibriSpeech or lacks audio.
    """
    if settings.path is None:
        raise CorpusError("corpus.path: expected the folder LibriSpeech or one part of it")
    path = Path(settings.path).resolve()
    names = {*LIBRISPEECH, *MINI_LIBRISPEECH}
    folder, wanted = (path.parent, [path.name]) if path.name in names else (path, "auto")
    there = [path.name] if path.name in names else sorted(names)
    lists = [path for part in there for path in sorted((folder / part).rglob("*.trans.txt"))]
    expected = {id: path for path in lists for id in _listed(path)}
    with errors_of_lhotse(path):
        parts = prepare_librispeech(folder, dataset_parts=wanted)
    return convert(parts, expected, settings, path)


def _listed(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: not a readable list: {error}") from None
    for number, line in enumerate(lines, 1):
        if len(line.split()) == 1:
            raise CorpusError(f"{path}:{number}: expected an id and words, found {line!r}")
    return [line.split()[0] for line in lines if line.strip()]
