"""Corpora: one recipe per file, each gives a Lhotse `CutSet` with one supervision per cut.

A supervision carries `text`, `speaker` and, in `custom`, whatever else the source says of it.
"""

import difflib
from collections.abc import Callable

from lhotse import CutSet

from fedspeech.config.corpus import CorpusSettings
from fedspeech.corpus import (
    an4,
    arabic_speech_commands,
    commonvoice,
    fluent_speech_commands,
    jsonl,
    librispeech,
    synthetic,
    tedlium3,
)
from fedspeech.errors import CorpusError

RECIPES: dict[str, Callable[[CorpusSettings], CutSet]] = {
    "an4": an4.prepare,
    "arabic-speech-commands": arabic_speech_commands.prepare,
    "commonvoice": commonvoice.prepare,
    "fluent-speech-commands": fluent_speech_commands.prepare,
    "jsonl": jsonl.prepare,
    "librispeech": librispeech.prepare,
    "synthetic": synthetic.prepare,
    "tedlium3": tedlium3.prepare,
}


def load(settings: CorpusSettings) -> CutSet:
    """The corpus that the settings name, in the recipe's order, held in memory.

    Raises CorpusError where the recipe is unknown or the speech cannot be used as it is.
    """
    if settings.recipe not in RECIPES:
        near = difflib.get_close_matches(settings.recipe, RECIPES, n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise CorpusError(
            f"corpus.recipe: unknown recipe {settings.recipe!r}, "
            f"expected one of {', '.join(sorted(RECIPES))}{hint}"
        )
    return RECIPES[settings.recipe](settings)
