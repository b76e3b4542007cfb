"""Settings of the speech, and of what of it trains and what of it tests."""

from typing import Annotated

from pydantic import Field, model_validator

from fedspeech.config.values import (
    Count,
    FieldValue,
    NonNegative,
    Positive,
    PositiveFloat,
    Settings,
    Speakers,
    Whole,
)


class SyntheticSettings(Settings):
    """The corpus that espeak-ng speaks."""

    speakers: Positive = 32
    """Distinct voices, noises and rates."""
    train_utterances: Positive = 48
    """Utterances of each speaker that carry `part = "train"`."""
    test_utterances: Positive = 24
    """Utterances of each speaker that carry `part = "test"`."""
    words: tuple[Positive, Positive] = (2, 4)
    """Fewest and most words in an utterance."""
    vocabulary: Annotated[int, Field(ge=8, le=64, strict=True)] = 24
    """Distinct words."""
    seed: Whole = 0
    """Of the corpus; the seed of a run does not change it."""

    @model_validator(mode="after")
    def _in_order(self) -> "SyntheticSettings":
        if self.words[0] > self.words[1]:
            raise ValueError("words: expected the fewest first, then the most")
        return self


class CorpusSettings(Settings):
    """Where the speech is."""

    recipe: str = "jsonl"
    """Who reads it: a name of `fedspeech.corpus.RECIPES`."""
    path: str | None = None
    """Folder or manifest; relative to the folder where the command runs."""
    channel: Count | None = None
    """Which channel to take of recordings that have more than one (refused unless told)."""
    synthetic: SyntheticSettings = SyntheticSettings()


class TrainPart(Settings):
    """What of a client's speech is `train_s`; all the rest is `test_s`. Exactly one way."""

    seconds: PositiveFloat | None = None
    """The first utterances up to so many seconds."""
    fraction: Annotated[float, Field(gt=0, lt=1, strict=True)] | None = None
    """The first so many of its utterances (0 … 1)."""
    field: str | None = None
    """A field of the manifest; `train_s` is where it has one of `values`."""
    values: tuple[FieldValue, ...] = ()

    @model_validator(mode="after")
    def _one_way(self) -> "TrainPart":
        ways = [way for way in ("seconds", "fraction", "field") if getattr(self, way) is not None]
        if len(ways) != 1:
            raise ValueError(f"expected exactly one of seconds, fraction, field; found {ways}")
        if (self.field is None) != (not self.values):
            raise ValueError("field and values belong together")
        return self


class HeldOut(Settings):
    """What of the corpus tests; all the rest trains. Exactly one way."""

    speakers: Speakers | None = None
    """A number (the last ones by id), a list of ids, or a file with one id per line."""
    field: str | None = None
    """A field of the manifest; what has one of `values` there tests."""
    values: tuple[FieldValue, ...] = ()

    @model_validator(mode="after")
    def _one_way(self) -> "HeldOut":
        if (self.speakers is None) == (self.field is None):
            raise ValueError("expected either speakers, or field and values")
        if (self.field is None) != (not self.values):
            raise ValueError("field and values belong together")
        return self


class PartitionSettings(Settings):
    """Disjoint speakers for the generic part and for the clients.

    Speakers are given as a number (the first ones by id that are left), a list of ids, a file with
    one id per line, or "rest".
    """

    generic: Speakers = 12
    development: Speakers = 1
    """Which of the generic speakers judge G while it trains (a number: the last ones by id)."""
    clients: Speakers = "rest"
    train: TrainPart = TrainPart(seconds=300.0)
    least_seconds: NonNegative = 1.0
    """A client with less speech than this in `train_s` is left out and named."""
