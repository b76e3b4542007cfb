"""What a model spells with: words, characters or SentencePiece pieces; its vocabulary is JSON.

Unit 0 is the blank of CTC and RNN-T; it spells nothing.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import sentencepiece

from fedspeech.config.model import UnitSettings
from fedspeech.errors import CorpusError

KINDS: tuple[str, ...] = get_args(UnitSettings.model_fields["kind"].annotation)
BLANK = "<blank>"
SPACE = "▁"


class Units:
    """A vocabulary: texts to unit numbers and back."""

    def __init__(self, kind: str, vocabulary: Sequence[str], pieces: bytes | None = None) -> None:
        self.kind = kind
        self.vocabulary = tuple(vocabulary)
        self._pieces = pieces
        self._number = {unit: number for number, unit in enumerate(self.vocabulary) if number}
        self._processor = (
            None if pieces is None else sentencepiece.SentencePieceProcessor(model_proto=pieces)
        )

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> list[int]:
        """The unit numbers of a text. Raises CorpusError naming what the vocabulary lacks."""
        if unknown := sorted(self.lacking(text)):
            raise CorpusError(f"not in the vocabulary: {' '.join(unknown)} (in {text!r})")
        return [self._number[unit] for unit in self._split(text)]

    def lacking(self, text: str) -> set[str]:
        """What of a text is not in the vocabulary."""
        return set(self._split(text)) - self._number.keys()

    def decode(self, numbers: Iterable[int]) -> str:
        """The text that some unit numbers spell."""
        return " ".join(self.spell(numbers).split())

    def spell(self, numbers: Iterable[int]) -> str:
        """The same with all spaces: what some numbers spell, and then others, is what all do.

        A word that is complete has a space behind it.
        """
        spelled = "".join(
            f"{self.vocabulary[number]}{SPACE if self.kind == 'words' else ''}"
            for number in numbers
            if number != 0
        )
        return spelled.replace(SPACE, " ")

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        content: dict[str, Any] = {"kind": self.kind, "units": list(self.vocabulary)}
        if self._pieces is not None:
            content["sentencepiece"] = base64.b64encode(self._pieces).decode()
        return content

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Units":
        """Raises KeyError, TypeError or ValueError where the content is not a vocabulary."""
        kind, vocabulary = content["kind"], content["units"]
        if kind not in KINDS or not all(isinstance(unit, str) for unit in vocabulary):
            raise ValueError(f"expected units that are strings, of kind {', '.join(KINDS)}")
        pieces = content["sentencepiece"] if kind == "pieces" else None
        proto = None if pieces is None else base64.b64decode(pieces, validate=True)
        try:
            return Units(kind, vocabulary, proto)
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model: {error}") from None

    def _split(self, text: str) -> list[str]:
        if self.kind == "words":
            return text.split()
        if self._processor is not None:
            return list(self._processor.encode(text, out_type=str))
        return list(SPACE.join(text.split()))


def learn(texts: Sequence[str], settings: UnitSettings) -> Units:
    """The vocabulary of some transcripts. Raises CorpusError where they are too few for it."""
    if settings.kind == "words":
        return Units("words", [BLANK, *sorted({word for text in texts for word in text.split()})])
    if settings.kind == "characters":
        characters = {character for text in texts for character in text} - {" ", SPACE}
        return Units("characters", [BLANK, SPACE, *sorted(characters)])
    return _learn_pieces(texts, settings.size)


def _learn_pieces(texts: Sequence[str], size: int) -> Units:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise CorpusError(f"units.size = {size}: {error}") from None
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
    spelled = [piece for piece in pieces if piece not in ("<s>", "</s>", "<unk>")]
    return Units("pieces", [BLANK, *spelled], model.getvalue())
