"""The settings of a run: one TOML file, validated whole before anything starts."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from fedspeech import settings_file
from fedspeech.errors import ConfigError


def _expecting(expected: str) -> WrapValidator:
    """One message for a value that none of several types takes, instead of one for each type."""

    def check(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(f"expected {expected}") from None

    return WrapValidator(check)


# Strict: a number is not guessed out of a string or a truth value.
Whole = Annotated[int, Field(strict=True)]
Count = Annotated[int, Field(ge=0, strict=True)]
Positive = Annotated[int, Field(ge=1, strict=True)]
Real = Annotated[float, Field(strict=True)]
NonNegative = Annotated[float, Field(ge=0, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, strict=True)]
Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]
Speakers = Annotated[
    Positive | tuple[str, ...] | str,
    _expecting('a number of speakers (at least 1), a list of ids, the name of a file, or "rest"'),
]
Together = Annotated[
    Positive | Literal["auto"], _expecting('a number of speakers (at least 1) or "auto"')
]
FieldValue = Annotated[Whole | str, _expecting("a whole number or a string")]
Share = Annotated[float, Field(gt=0, le=1, strict=True)]
Sample = Annotated[
    Positive | Share,
    _expecting("a share of the speakers (above 0, at most 1.0) or a number of them (at least 1)"),
]
Available = Annotated[
    Share | str, _expecting("a rate (above 0, at most 1) or the name of a file with a trace")
]

LEAST_SPEED, MOST_SPEED = 0.5, 2.0


class Settings(BaseModel):
    """Unknown keys are refused, and so are values that are NaN or infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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


class FeatureSettings(Settings):
    """What the acoustic model sees."""

    kind: Literal["mfcc", "log-mel"] = "mfcc"
    dimension: Annotated[int, Field(ge=4, le=128, strict=True)] = 40
    """Number of mel filters, and of cepstral coefficients."""
    normalization: Literal["speaker", "utterance"] = "speaker"
    """Over what mean and variance are taken: the speaker's training speech, or each utterance."""


class AugmentationSettings(Settings):
    """How training speech is varied. Empty tuples and zeros turn a variation off."""

    speeds: tuple[PositiveFloat, ...] = (0.9, 1.0, 1.1)
    """Each utterance's speed is drawn from these; 0.5 … 2 in hundredths."""
    warps: tuple[PositiveFloat, ...] = (0.9, 1.1)
    """Least and greatest factor on all frequencies (vocal tract length)."""
    volumes: tuple[PositiveFloat, ...] = (0.25, 2.0)
    """Least and greatest gain."""
    noise: tuple[Real, ...] = (5.0, 30.0)
    """Least and greatest ratio, in dB, of the utterance to noise (white, or tilted)."""
    noise_probability: Fraction = 0.5
    """How much of the speech gets noise."""
    time_masks: Count = 2
    """SpecAugment: stretches of time that are blanked."""
    time_mask_frames: Count = 15
    """The most frames of 10 ms that one of them has."""
    frequency_masks: Count = 2
    """SpecAugment: bands of neighbouring mel filters that are blanked."""
    frequency_mask_bins: Count = 6
    """The most filters that one of them has."""

    @field_validator("speeds")
    @classmethod
    def _in_hundredths(cls, speeds: tuple[float, ...]) -> tuple[float, ...]:
        for speed in speeds:
            # A ratio of large numbers would take gigabytes to resample by.
            if not LEAST_SPEED <= speed <= MOST_SPEED or speed != round(speed, 2):
                raise ValueError("expected speeds of 0.5 … 2 in hundredths")
        return speeds

    @field_validator("warps", "volumes", "noise")
    @classmethod
    def _range(cls, ends: tuple[float, ...]) -> tuple[float, ...]:
        if len(ends) not in (0, 2) or list(ends) != sorted(ends):
            raise ValueError("expected the least and the greatest")
        return ends


class PersonalAugmentation(AugmentationSettings):
    """One voice in one place: what varies other voices and rooms is off unless asked for."""

    warps: tuple[PositiveFloat, ...] = ()
    volumes: tuple[PositiveFloat, ...] = ()
    noise: tuple[Real, ...] = ()
    time_masks: Count = 1
    time_mask_frames: Count = 8
    frequency_masks: Count = 1
    frequency_mask_bins: Count = 4


class UnitSettings(Settings):
    """What the model spells with."""

    kind: Literal["words", "characters", "pieces"] = "characters"
    size: Positive = 500
    """Number of SentencePiece pieces; for `pieces` only."""


class ModelSettings(Settings):
    """The acoustic model, by its name in `fedspeech.models.MODELS`."""

    name: str = "tdnn-small"


class Optimization(Settings):
    """One training of one model."""

    epochs: Positive
    batch_size: Positive
    """Utterances in a minibatch."""
    learning_rate: PositiveFloat
    """The greatest rate, reached at the end of the warm-up."""
    final_learning_rate: PositiveFloat
    """Where the rate is after the last update."""
    decay: Literal["exponential", "cosine"] = "exponential"
    """How it gets there from the greatest."""
    warmup: Fraction = 0.0
    """The share of updates in which the rate rises linearly from zero."""
    weight_decay: NonNegative = 0.0
    """AdamW's (Loshchilov & Hutter 2019)."""
    gradient_norm: PositiveFloat = 5.0
    """Gradients are scaled down to at most this norm."""
    dropout: tuple[tuple[Fraction, Fraction], ...] = ((0.0, 0.0),)
    """Points (share of updates done, probability); linear between them."""
    augmentation: AugmentationSettings = AugmentationSettings()
    clean: Fraction = 0.0
    """The share of updates, from the first, that see the speech as it is: CTC leaves the plateau
    where everything is blank much sooner, and whatever the seed."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto` is bf16 where the processor computes in it."""

    @field_validator("dropout")
    @classmethod
    def _in_order(cls, points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        shares = [share for share, _ in points]
        if not shares or shares != sorted(shares):
            raise ValueError("expected points (share, probability), the shares in their order")
        return points


class GenericSettings(Optimization):
    """How G is trained."""

    epochs: Positive = 40
    batch_size: Positive = 16
    learning_rate: PositiveFloat = 3e-3
    final_learning_rate: PositiveFloat = 2e-5
    decay: Literal["exponential", "cosine"] = "cosine"
    warmup: Fraction = 0.1
    weight_decay: NonNegative = 0.01
    clean: Fraction = 0.1
    patience: Positive = 15
    """Stop after so many epochs without a better WER on the development speakers."""
    threads: Positive = 2
    """Of PyTorch, while G is trained on a processor; another number gives other roundings."""
    model: str | None = None
    """A safetensors file to take as G instead of training one."""


class PersonalSettings(Optimization):
    """How every client fine-tunes; equal for all of them."""

    epochs: Positive = 12
    batch_size: Positive = 16
    learning_rate: PositiveFloat = 5e-4
    final_learning_rate: PositiveFloat = 5e-5
    augmentation: PersonalAugmentation = PersonalAugmentation()


class ContinueFrom(Settings):
    """Where the next round's fine-tuning starts."""

    base: str = "kbest"
    alpha: Fraction = 0.5


class ImproveSettings(Settings):
    """An ordinary Flower strategy that improves G over rounds before personalization."""

    strategy: str = Field("flwr.serverapp.strategy:FedAvg", alias="class")
    rounds: Positive = 1
    """Its own, before those of personalization."""
    options: dict[str, Any] = {}
    """Keyword arguments of the strategy's class."""


class ParticipationSettings(Settings):
    """Who takes part in a round, in simulated time: nobody waits for a slow device.

    Rounds are counted through the run: first those of `improve`, then those of personalization.
    """

    sample: Sample = 1.0
    """Who is asked, of those that are available: a share of them (0.25; at least one speaker), or
    how many (25; where fewer are available, all)."""
    available: Available = 1.0
    """The probability with which a speaker is available in a round; or a CSV file
    `speaker,from,until`: available from that round until that round, both included."""
    factors: str | None = None
    """A CSV file `speaker,factor`: a device of factor 2 takes twice as long."""
    spread: NonNegative = 0.0
    """Draws the factors where no file gives them: log-normal with median 1, and this is the
    standard deviation of the logarithm."""
    cost: NonNegative = 0.1
    """Simulated seconds that a device of factor 1 takes for one second of speech in one epoch."""
    exchange: NonNegative = 6.0
    """Simulated seconds that sending and receiving take in a round, whatever the factor."""
    deadline: PositiveFloat | None = None
    """Simulated seconds after which a round ends without those that are not done."""
    late: Literal["drop", "next-round"] = "drop"
    """Whether what a device does after the deadline is lost, or its P_s is taken in the round in
    which it is done. What improves G is lost either way."""

    @model_validator(mode="after")
    def _one_source_of_factors(self) -> "ParticipationSettings":
        if self.factors is not None and self.spread > 0:
            raise ValueError("factors and spread exclude each other")
        return self


class FederationSettings(Settings):
    """Rounds, what is compared, and when a round has failed."""

    rounds: Positive = 1
    """How often all speakers fine-tune; each time from where `continue_from` says."""
    bases: tuple[str, ...] = ("generic", "mean", "kbest", "dendrogram", "random")
    """Names of aggregation rules; each makes an M_s for every speaker."""
    alphas: tuple[Fraction, ...] = tuple(round(0.1 * i, 1) for i in range(11))
    """Weights of P_s; every base is judged at each."""
    chosen_base: str | None = None
    """The base whose on-device choice of alpha is reported first; by default kbest where it is
    among `bases`, else the first of them."""
    continue_from: ContinueFrom | None = None
    mix_on: Literal["device", "server"] = "device"
    """Who computes alpha * P_s + (1 - alpha) * M_s; the models are the same. Where the server does,
    no device can choose an alpha."""
    quorum: Fraction = 0.5
    """The least share of the speakers that have to answer, of those that have taken part so far
    and of those that are asked in a round; below it the run fails."""
    pair_decodings: Positive = 500
    """How many pairs (s, s') Figure 2 decodes where no rule decoded them all."""
    improve: ImproveSettings | None = None
    participation: ParticipationSettings | None = None
    """By default everybody takes part in every round."""

    @field_validator("bases", "alphas")
    @classmethod
    def _some(cls, listed: tuple[Any, ...]) -> tuple[Any, ...]:
        if not listed:
            raise ValueError("expected at least one")
        if repeated := [each for each in listed if listed.count(each) > 1]:
            raise ValueError(f"expected each once, {repeated[0]!r} comes more than once")
        return listed

    @model_validator(mode="after")
    def _known_bases(self) -> "FederationSettings":
        go_on = self.continue_from.base if self.continue_from else None
        for name, base in (("chosen_base", self.chosen_base), ("continue_from.base", go_on)):
            if base is not None and base not in {"generic", *self.bases}:
                raise ValueError(
                    f"{name}: expected generic or one of bases ({', '.join(self.bases)}), "
                    f"found {base!r}"
                )
        return self

    @model_validator(mode="after")
    def _later_rounds_start_somewhere(self) -> "FederationSettings":
        if self.rounds > 1 and self.continue_from is None:
            raise ValueError(f"rounds = {self.rounds}: expected continue_from (base and alpha)")
        return self


class EngineSettings(Settings):
    """Where clients run."""

    grid: Literal["ray", "in-process"] = "ray"
    """Ray's workers side by side, or one client after the other."""
    workers: Positive = 2
    """Ray's processes."""
    cpus_per_worker: Positive = 1
    """Also the threads that PyTorch may use in a worker."""
    gpus_per_worker: NonNegative = 0.0
    """0.25: four workers share a GPU."""
    simulated_gpus: Count = 0
    """GPUs that Ray is told of on a machine without one."""
    cohort: Together = "auto"
    """Speakers that are fine-tuned as one stack of models; `auto` is as many as the memory of a GPU
    holds, and 1 on a processor, where plain loops are faster. Another size gives other roundings.
    """
    retries: Count = 2
    """How often a message is tried again on a new worker after its worker died."""
    message_seconds: PositiveFloat = 3600.0
    """A worker that does not answer a message within so many seconds is killed."""
    ray_address: Annotated[str, Field(pattern=r"^[^/\s]+:[0-9]{1,5}$")] | None = None
    """`host:port` of a Ray cluster that runs already; the workers join it, and it stays when the
    run ends. Speech and models travel by path, G by Ray: on every machine fedspeech is installed,
    and the run folder and the corpus lie at the same place (a shared file system). The cluster's
    token, if it wants one, is `$RAY_AUTH_TOKEN` with `RAY_AUTH_MODE=token`."""

    @model_validator(mode="after")
    def _gpus_are_the_clusters_own(self) -> "EngineSettings":
        if self.ray_address is not None and self.simulated_gpus:
            raise ValueError(
                "simulated_gpus: a cluster that runs already (ray_address) has its own"
            )
        return self

    @property
    def cohort_size(self) -> int:
        """The number of speakers in a cohort; 1 where nothing has settled it."""
        return 1 if self.cohort == "auto" else self.cohort


class Config(Settings):
    """All settings of a run."""

    name: str = "personalization"
    """Of the run, and of its folder `runs/NAME`."""
    kind: Literal["personalization"] = "personalization"
    seed: Whole = 0
    """Every random draw follows from it."""
    corpus: CorpusSettings = CorpusSettings()
    partition: PartitionSettings = PartitionSettings()
    features: FeatureSettings = FeatureSettings()
    units: UnitSettings = UnitSettings()
    model: ModelSettings = ModelSettings()
    generic: GenericSettings = GenericSettings()
    personal: PersonalSettings = PersonalSettings()
    federation: FederationSettings = FederationSettings()
    rules: dict[str, dict[str, Any]] = {}
    """Settings of each aggregation rule, by its name; `class = "package:Class"` names its code."""
    engine: EngineSettings = EngineSettings()

    @field_validator("name")
    @classmethod
    def _a_folder(cls, name: str) -> str:
        if {"/", "\0"} & set(name) or not name.strip("."):
            raise ValueError("expected the name of a folder")
        return name


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and what it extends, apply `section.key=value` overrides, validate.

    Raises ConfigError naming file, line, what was found and what was expected.
    """
    table, paths = settings_file.read(path)
    for override in overrides:
        settings_file.override(table, override)
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        lines = [_explain(item, paths, overrides) for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def dump(config: Config) -> str:
    """The settings as TOML with every default spelled out; what is None is left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True, by_alias=True))


EXPECTED = {
    "dict_type": "expected a table",
    "model_type": "expected a table",
    "tuple_type": "expected a list",
}
"""Where pydantic speaks of Python's types and not of TOML's."""


def _explain(item: Mapping[str, Any], paths: Sequence[Path], overrides: Sequence[str]) -> str:
    keys = [str(part) for part in item["loc"]]
    where = f"{settings_file.where(keys, paths, overrides)}: {'.'.join(keys) or 'settings'}"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(keys[-1], _known(keys[:-1]), n=1, cutoff=0.4)
        hint = f"; the nearest known one is {near[0]}" if near else ""
        return f"{where}: unknown setting{hint}"
    message = EXPECTED.get(item["type"], item["msg"].removeprefix("Value error, "))
    found = "" if isinstance(item["input"], dict) else f", found {item['input']!r}"
    return f"{where}: {message}{found}"


def _known(section: Sequence[str]) -> list[str]:
    model: Any = Config
    for name in section:
        fields = {f.alias or key: f for key, f in model.model_fields.items()}
        annotation = fields[name].annotation if name in fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, Settings)), None)
        if model is None:
            return []
    return [field.alias or key for key, field in model.model_fields.items()]
