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
    one = path.name in {*LIBRISPEECH, *MINI_LIBRISPEECH}
    folder, wanted = (path.parent, [path.name]) if one else (path, "auto")
    with errors_of_lhotse(path):
        parts = prepare_librispeech(folder, dataset_parts=wanted)
    return convert(parts, _listed([folder / part for part in parts]), settings, path)


def _listed(parts: list[Path]) -> dict[str, Path]:
    lists = [path for part in parts for path in sorted(part.rglob("*.trans.txt"))]
    return {
        line.split()[0]: path
        for path in lists
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip()
    }
