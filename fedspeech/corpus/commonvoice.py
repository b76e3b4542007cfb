"""Mozilla Common Voice, by Lhotse's recipe: one language, what its train, dev and test lists name.

`path` is the folder of a language (`…/cv-corpus-20.0-2024-12-06/pl`), or the release's where it
holds one language only.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from lhotse import CutSet
from lhotse.recipes import prepare_commonvoice

from fedspeech.config.corpus import CorpusSettings
from fedspeech.corpus.lhotse_recipes import convert, errors_of_lhotse
from fedspeech.errors import CorpusError

COLUMNS = ("client_id", "path", "sentence", "age", "gender", "accents", "variant")
"""What Lhotse's recipe reads; releases before 14 lack some of them."""


def prepare(settings: CorpusSettings) -> CutSet:
    """The utterances in the order of their ids; each carries `part` and what its list says of it.

    Raises CorpusError where `path` is not one language of Common Voice or lacks clips.
    """
    if settings.path is None:
        raise CorpusError("corpus.path: expected the folder of one language of Common Voice")
    language = _language(Path(settings.path).resolve())
    lists = [
        path for part in ("train", "dev", "test") if (path := language / f"{part}.tsv").exists()
    ]
    if not lists:
        raise CorpusError(f"{language}: expected train.tsv, dev.tsv or test.tsv")
    expected = {id: path for path in lists for id in _listed(path)}
    with TemporaryDirectory() as manifests, errors_of_lhotse(language):
        parts = prepare_commonvoice(
            language.parent, manifests, [language.name], [path.stem for path in lists]
        )
    return convert(parts[language.name], expected, settings, language)


def _language(path: Path) -> Path:
    found = [path] if (path / "clips").is_dir() else sorted(p.parent for p in path.glob("*/clips"))
    if len(found) != 1:
        names = f" of {', '.join(p.name for p in found)}" if found else ", with its clips"
        raise CorpusError(f"{path}: expected the folder of one language{names}")
    return found[0]


def _listed(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
                raise CorpusError(f"{path}:1: expected a column {missing[0]}")
            return [_clip(row, f"{path}:{rows.line_num}") for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{path}: not a readable list: {error}") from None


def _clip(row: Mapping[str, str | None], where: str) -> str:
    if not (row["path"] and row["sentence"]):
        raise CorpusError(f"{where}: expected a path and a sentence")
    return Path(row["path"]).stem
