"""Settings of the paper's experiments: generations of a model, each sent as a diff.

Macoskey, Strimel, Rastrow, "Learning a Neural Diff for Speech Models", 2021 (arXiv 2108.01561).
"""

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fedspeech.config.corpus import CorpusSettings, HeldOut
from fedspeech.config.engine import WorkerSettings
from fedspeech.config.model import (
    FeatureSettings,
    ModelSettings,
    UnitSettings,
)
from fedspeech.config.training import OneOfMany
from fedspeech.config.values import (
    FieldValue,
    Fraction,
    Positive,
    PositiveFloat,
    Settings,
    Share,
    Whole,
    each_once,
    expecting,
    folder_name,
)

Method = Literal["sparse", "hash"]
Ratio = Annotated[float, Field(gt=1, strict=True)]
Between = Annotated[
    tuple[Positive, Positive] | tuple[Fraction, Fraction],
    expecting("two shares of the updates (from 0 to 1) or the numbers of two (at least 1)"),
]
"""Updates of a training: `[0.1, 0.5]` or `[2000, 12000]`."""


class RecognitionSettings(Settings):
    """Setting 1 of the paper: a recognizer whose training speech grows. Its model says by which
    criterion it is trained and decoded; of the texts the greedy one is taken."""

    shares: tuple[Share, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """Of the training speech by duration, for each generation; each holds the one before."""
    model: ModelSettings = ModelSettings(name="tdnn-tiny")
    units: UnitSettings = UnitSettings()

    @model_validator(mode="after")
    def _growing(self) -> "RecognitionSettings":
        if len(self.shares) < 2 or sorted(set(self.shares)) != list(self.shares):
            raise ValueError("shares: expected two or more, each greater than the one before")
        return self


class UnderstandingSettings(Settings):
    """Setting 2 of the paper: phrases of a contrastive model, and domains that are added."""

    field: str
    """Of the manifest; its value says which domain an utterance belongs to."""
    domains: dict[str, tuple[FieldValue, ...]]
    """The field's values of each domain, in the order in which domains are added."""
    first: Positive = 3
    """Domains of generation 0; each generation adds one."""
    tokens: Literal["words", "characters"] = "characters"
    """What the text encoder reads."""

    @model_validator(mode="after")
    def _more_than_the_first(self) -> "UnderstandingSettings":
        if len(self.domains) <= self.first:
            raise ValueError(
                f"domains: expected more than the first {self.first}, found {len(self.domains)}"
            )
        times = Counter(value for values in self.domains.values() for value in values)
        if twice := [value for value, count in times.items() if count > 1]:
            raise ValueError(f"domains: {twice[0]!r} comes more than once")
        return self


class FullTraining(OneOfMany):
    """How F_0, BL and BLC are trained, each from the beginning."""

    epochs: Positive = 40
    learning_rate: PositiveFloat = 3e-3
    warmup: Fraction = 0.1
    clean: Fraction = 0.1


class DiffTraining(OneOfMany):
    """How a diff is trained on top of the generation before."""

    epochs: Positive = 20
    learning_rate: PositiveFloat = 1e-3


class SparseTraining(DiffTraining):
    """How a sparse diff is trained, and when it is pruned."""

    prune: Between = (0.05, 0.55)
    """The updates between which pruning begins and ends."""
    compressed_prune: Between = (0.4, 0.7)
    """The same for the sparse BLC, which has to become a model first."""

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> "SparseTraining":
        for name in ("prune", "compressed_prune"):
            begin, end = getattr(self, name)
            if begin >= end:
                raise ValueError(f"{name}: expected the beginning before the end")
        return self


class HashTraining(DiffTraining):
    """How a hashed diff is trained; `hold` is also that of the hashed BLC."""

    compressed_learning_rate: PositiveFloat = 1.5e-3
    """Of the hashed BLC: each of its cells moves many weights, where a step of BL's moves one."""
    hold: Fraction = 0.4
    hashes: Annotated[int, Field(ge=1, le=16, strict=True)] = 3
    """Hash functions K."""


class NeuralDiffConfig(Settings):
    """All settings of a run of kind `neural-diff`; exactly one of the two tasks."""

    name: Annotated[str, folder_name] = "neural-diff"
    """Of the run, and of its folder `runs/NAME`."""
    kind: Literal["neural-diff"] = "neural-diff"
    seeds: tuple[Whole, ...] = (0, 1, 2)
    """Everything is trained with each of them; the intervals' draws follow from the first."""
    corpus: CorpusSettings = CorpusSettings()
    test: HeldOut = HeldOut(speakers=8)
    features: FeatureSettings = FeatureSettings()
    recognition: RecognitionSettings | None = None
    understanding: UnderstandingSettings | None = None
    methods: tuple[Method, ...] = ("sparse", "hash")
    ratios: tuple[Ratio, ...] = (10.0,)
    """10: a diff has at most a tenth of the bytes of the whole model, and brings new values, or
    cells, for at most a tenth of its matrices, which is how the paper counts."""
    values: Literal["fp32", "fp16", "bf16", "int8", "auto"] = "fp16"
    """How a diff stores values; `auto` is what loses least, and takes long to find."""
    training: FullTraining = FullTraining()
    sparse: SparseTraining = SparseTraining()
    hash: HashTraining = HashTraining()
    engine: WorkerSettings = WorkerSettings()

    @model_validator(mode="after")
    def _one_task(self) -> "NeuralDiffConfig":
        if (self.recognition is None) == (self.understanding is None):
            raise ValueError("expected either a section recognition or a section understanding")
        return self

    _each_once = field_validator("seeds", "methods", "ratios")(each_once)

    @model_validator(mode="after")
    def _arrays_fit(self) -> "NeuralDiffConfig":
        if self.values == "fp32" and "hash" in self.methods:
            raise ValueError(
                "values: fp32 does not fit: cells for 1 / ratio of the matrices have all the bytes "
                "that a diff may have, and biases are sent as well"
            )
        return self

    @property
    def seed(self) -> int:
        """The first of the seeds."""
        return self.seeds[0]

    @property
    def speeds(self) -> tuple[float, ...]:
        """Every speed at which training speech is heard."""
        trainings = (self.training, self.sparse, self.hash)
        return tuple(speed for one in trainings for speed in one.augmentation.speeds)
