"""Settings of distilling a large RNN-T into a small one by module replacing (LCMR).

Zhao et al., "Knowledge Distillation via Module Replacing for Automatic Speech Recognition with
Recurrent Neural Network Transducer", Interspeech 2022.
"""

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
    Fraction,
    NonNegative,
    Positive,
    PositiveFloat,
    Settings,
    Share,
    Whole,
    each_once,
    folder_name,
)

TEACHER, STUDENT, KD = "teacher", "student", "kd"
"""Rows that every experiment may ask for; all others are sections of `replacing`."""
Layers = Annotated[tuple[Positive, ...], Field(min_length=1)]


class TeacherSettings(ModelSettings):
    """The large model."""

    name: str = "rnnt-tiny-deep"
    file: str | None = None
    """A safetensors file to take as the teacher, its description beside it, instead of training
    one with each seed."""


class StudentSettings(ModelSettings):
    """The small model."""

    name: str = "rnnt-tiny-flat"


class Cut(Settings):
    """How many neighbouring layers each module has, the input's first, in both models."""

    teacher: Layers
    student: Layers

    @model_validator(mode="after")
    def _as_many(self) -> "Cut":
        if len(self.teacher) != len(self.student):
            raise ValueError(
                "expected as many modules in both models, found "
                f"{len(self.teacher)} in the teacher {list(self.teacher)} and "
                f"{len(self.student)} in the student {list(self.student)}"
            )
        return self


class ModuleSettings(Settings):
    """What can stand in for what: each network's layers, cut into modules."""

    encoder: Cut = Cut(teacher=(3, 2), student=(1, 1))
    prediction: Cut = Cut(teacher=(2,), student=(1,))


class ReplacingSettings(Settings):
    """One way to replace the teacher's modules by the student's."""

    schedule: Literal["constant", "linear", "logarithmic", "exponential"] = "logarithmic"
    """How the probability p of the student's modules goes from `rate` to 1."""
    rate: Share = 0.5
    """p_0: the probability at the beginning."""
    base: Annotated[float, Field(ge=1.001, strict=True)] = 40.0
    """B of the logarithmic schedule; nearer to 1 it would be the linear one, but for rounding."""
    phase: Share = 0.75
    """The share of updates in which modules are replaced; then the student learns alone."""
    strategy: Literal[1, 2] = 2
    """2: the teacher is trained before, and frozen. 1: both learn together, from nothing."""

    @property
    def replaces(self) -> bool:
        """Whether a module of the teacher's is ever heard."""
        return self.rate < 1

    @property
    def inherits(self) -> bool:
        """Whether the student only begins with what its teacher, trained before, hands down."""
        return not self.replaces and self.strategy == 2

    @model_validator(mode="after")
    def _reaches_one(self) -> "ReplacingSettings":
        if self.phase == 1 and self.rate < 1:
            raise ValueError(
                f"phase = 1: a {self.schedule} schedule from {self.rate:g} never reaches 1, so the "
                "student would never work alone; expected less"
            )
        return self


class LatticeSettings(Settings):
    """Distillation over the lattice (Panchapagesan et al. 2021)."""

    alpha: NonNegative = 1e-3
    """Weight of the Kullback-Leibler divergence, summed over the lattice, beside the loss."""


class DistillationTraining(OneOfMany):
    """How each model is trained; equal for all rows."""

    epochs: Positive = 30
    learning_rate: PositiveFloat = 5e-3
    warmup: Fraction = 0.1
    weight_decay: NonNegative = 1e-3
    clean: Fraction = 0.3
    optimizer: Literal["adamw", "lamb"] = "adamw"
    """LAMB (You et al. 2020) is meant for large batches."""
    accumulated: Positive = 1
    """Minibatches whose gradients make one step; each counts alike, also an epoch's last one."""
    buckets: Positive | None = None
    """Utterances are cut by length into so many parts, and minibatches are drawn out of each; else
    a minibatch has like lengths out of twenty minibatches that are drawn."""


class DistillationConfig(Settings):
    """All settings of a run of kind `distillation`."""

    name: Annotated[str, folder_name] = "distillation"
    """Of the run, and of its folder `runs/NAME`."""
    kind: Literal["distillation"] = "distillation"
    seeds: tuple[Whole, ...] = (0, 1, 2)
    """Everything is trained with each of them; the intervals' draws follow from the first."""
    rows: tuple[str, ...] = (TEACHER, STUDENT, KD, "lcmr")
    """What is trained: the teacher, the student alone, the student with distillation over the
    lattice (`kd`), and the student with modules replaced, by the sections of `replacing`."""
    corpus: CorpusSettings = CorpusSettings()
    test: HeldOut = HeldOut(speakers=8)
    features: FeatureSettings = FeatureSettings(kind="log-mel", dimension=64)
    units: UnitSettings = UnitSettings()
    teacher: TeacherSettings = TeacherSettings()
    student: StudentSettings = StudentSettings()
    modules: ModuleSettings = ModuleSettings()
    replacing: dict[Annotated[str, folder_name], ReplacingSettings] = Field(
        default_factory=lambda: {"lcmr": ReplacingSettings()}
    )
    """The ways to replace, by the names of their rows."""
    kd: LatticeSettings = LatticeSettings()
    beam: Positive = 1
    """Texts that the search follows when a model is judged; 1 is greedy search."""
    training: DistillationTraining = DistillationTraining()
    engine: WorkerSettings = WorkerSettings()

    _each_once = field_validator("seeds", "rows")(each_once)

    @model_validator(mode="after")
    def _rows_are_known(self) -> "DistillationConfig":
        known = (TEACHER, STUDENT, KD, *self.replacing)
        if len(set(known)) < len(known):
            raise ValueError(f"replacing: {TEACHER}, {STUDENT} and {KD} are rows already")
        for row in self.rows:
            if row not in known:
                raise ValueError(f"rows: expected some of {', '.join(known)}, found {row!r}")
        return self

    @property
    def seed(self) -> int:
        """The first of the seeds."""
        return self.seeds[0]

    @property
    def speeds(self) -> tuple[float, ...]:
        """Every speed at which training speech is heard."""
        return self.training.augmentation.speeds
