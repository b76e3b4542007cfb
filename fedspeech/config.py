"""The settings of a run: one TOML file, validated whole before anything starts.

A file may derive from another: `extends = "personalization.toml"` names it, relative to itself.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedspeech.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Settings(BaseModel):
    """Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
    vocabulary: Annotated[int, Field(ge=8, le=64)] = 24
    """Distinct words."""
    seed: int = 0
    """Of the corpus; the seed of a run does not change it."""

    @model_validator(mode="after")
    def _in_order(self) -> "SyntheticSettings":
        if self.words[0] > self.words[1]:
            raise ValueError("words: expected the fewest first, then the most")
        return self


class CorpusSettings(Settings):
    """Where the speech is. `recipe` is a name of `fedspeech.corpus.RECIPES`."""

    recipe: str = "jsonl"
    path: str | None = None
    """Folder or manifest; relative to the folder where the command runs."""
    channel: Count | None = None
    """Which channel to take of recordings that have more than one (refused unless told)."""
    synthetic: SyntheticSettings = SyntheticSettings()


class TrainPart(Settings):
    """What of a client's speech is `train_s`; all the rest is `test_s`. Exactly one way."""

    seconds: PositiveFloat | None = None
    """The first utterances up to so many seconds."""
    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The first so many of its utterances (0 … 1)."""
    field: str | None = None
    """A field of the manifest; `train_s` is where it has one of `values`."""
    values: tuple[int | str, ...] = ()

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

    generic: Positive | tuple[str, ...] | str = 12
    development: Positive | tuple[str, ...] | str = 1
    """Which of the generic speakers judge G while it trains (a number: the last ones by id)."""
    clients: Positive | tuple[str, ...] | str = "rest"
    train: TrainPart = TrainPart(seconds=300.0)
    least_seconds: Annotated[float, Field(ge=0)] = 1.0
    """A client with less speech than this in `train_s` is left out and named."""


class FeatureSettings(Settings):
    """What the acoustic model sees."""

    kind: Literal["mfcc", "log-mel"] = "mfcc"
    dimension: Positive = 40
    """Number of mel filters, and of cepstral coefficients."""
    normalization: Literal["speaker", "utterance"] = "speaker"
    """Over what mean and variance are taken: the speaker's training speech, or each utterance."""


class AugmentationSettings(Settings):
    """How training speech is varied. Empty tuples and zeros turn a variation off."""

    speeds: tuple[PositiveFloat, ...] = (0.9, 1.0, 1.1)
    volumes: tuple[PositiveFloat, PositiveFloat] | None = (0.25, 2.0)
    """Least and greatest gain."""
    noise: tuple[float, float] | None = (5.0, 30.0)
    """Least and greatest ratio of the utterance to white-spectrum noise, in dB."""
    noise_probability: Fraction = 0.5
    time_masks: Count = 2
    time_mask_frames: Count = 15
    frequency_masks: Count = 2
    frequency_mask_bins: Count = 6


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
    """The rate at the last update."""
    decay: Literal["exponential", "cosine"] = "exponential"
    warmup: Fraction = 0.0
    """The share of updates in which the rate rises linearly from zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    gradient_norm: PositiveFloat = 5.0
    """Gradients are scaled down to at most this norm."""
    dropout: tuple[tuple[Fraction, Fraction], ...] = ((0.0, 0.0),)
    """Points (share of updates done, probability); linear between them."""
    augmentation: AugmentationSettings = AugmentationSettings()
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto` is bf16 where the processor computes in it."""


class GenericSettings(Optimization):
    """How G is trained."""

    epochs: Positive = 40
    batch_size: Positive = 16
    learning_rate: PositiveFloat = 2e-3
    final_learning_rate: PositiveFloat = 2e-5
    decay: Literal["exponential", "cosine"] = "cosine"
    warmup: Fraction = 0.1
    patience: Positive = 10
    """Stop after so many epochs without a better WER on the development speakers."""
    threads: Positive = 2
    model: str | None = None
    """A safetensors file to take as G instead of training one."""


class PersonalSettings(Optimization):
    """How every client fine-tunes; equal for all of them."""

    epochs: Positive = 8
    batch_size: Positive = 16
    learning_rate: PositiveFloat = 5e-4
    final_learning_rate: PositiveFloat = 5e-5


class ContinueFrom(Settings):
    """Where the next round's fine-tuning starts."""

    base: str = "kbest"
    alpha: Fraction = 0.5


class ImproveSettings(Settings):
    """An ordinary Flower strategy that improves G over rounds before personalization."""

    strategy: str = Field("flwr.serverapp.strategy:FedAvg", alias="class")
    rounds: Positive = 1
    options: dict[str, Any] = {}
    """Keyword arguments of the strategy's class."""


class FederationSettings(Settings):
    """Rounds, what is compared, and when a round has failed."""

    rounds: Positive = 1
    bases: tuple[str, ...] = ("generic", "mean", "kbest", "dendrogram", "random")
    alphas: tuple[Fraction, ...] = tuple(round(0.1 * i, 1) for i in range(11))
    chosen_base: str | None = None
    """The base whose on-device choice of alpha is reported first; by default the last of `bases`
    that lets the devices decide (`kbest`), else the first."""
    continue_from: ContinueFrom | None = None
    mix_on: Literal["device", "server"] = "device"
    quorum: Fraction = 0.5
    """The least share of the speakers that have to answer; below it the run fails."""
    pair_decodings: Positive = 500
    """How many pairs (s, s') Figure 2 decodes where no rule decoded them all."""
    improve: ImproveSettings | None = None


class EngineSettings(Settings):
    """Where clients run."""

    grid: Literal["ray", "in-process"] = "ray"
    workers: Positive = 2
    cpus_per_worker: Positive = 1
    """Also the threads that PyTorch may use in a worker."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    simulated_gpus: Count = 0
    """GPUs that Ray is told of on a machine without one."""
    retries: Count = 2
    """How often a message is tried again on a new worker after its worker died."""


class Config(Settings):
    """All settings of a run."""

    name: str = "personalization"
    kind: Literal["personalization"] = "personalization"
    seed: int = 0
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


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and what it extends, apply `section.key=value` overrides, validate.

    Raises ConfigError naming file, line, what was found and what was expected.
    """
    table = _read(path, seen=())
    for override in overrides:
        _override(table, override)
    return validate(table, path)


def validate(table: Mapping[str, Any], path: Path) -> Config:
    """The settings in a table that was read from `path`. Raises ConfigError."""
    try:
        return Config.model_validate(dict(table))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, path) for item in error.errors())) from None


def dump(config: Config) -> str:
    """The settings as TOML with every default spelled out; what is None is left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True, by_alias=True))


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends itself")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not readable as TOML: {error}") from None
    base = table.pop("extends", None)
    if base is None:
        return table
    return _merge(_read(path.parent / str(base), (*seen, path.resolve())), table)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        exclusive = key == "train"  # the ways to choose train_s exclude each other
        if isinstance(below, dict) and isinstance(value, dict) and not exclusive:
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: expected section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = key.strip().split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {section} is not a section")
    table[last] = value


def _explain(item: Mapping[str, Any], path: Path) -> str:
    keys = [str(part) for part in item["loc"]]
    where = f"{path}{_line(path, keys)}: {'.'.join(keys) or 'settings'}"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(keys[-1], _known(keys[:-1]), n=1, cutoff=0.4)
        hint = f"; the nearest known one is {near[0]}" if near else ""
        return f"{where}: unknown setting{hint}"
    message = item["msg"].removeprefix("Value error, ")
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


def _line(path: Path, keys: Sequence[str]) -> str:
    """`:LINE` of the setting, as near as a scan of headers and keys finds it, or nothing."""
    names = [key for key in keys if not key.isdigit()]
    section: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    for number, line in enumerate(lines, 1):
        if header := re.match(r"\s*\[([^\[\]]+)\]", line):
            section = [part.strip().strip('"') for part in header[1].split(".")]
            if section == names:
                return f":{number}"
        elif setting := re.match(r"\s*([\w.\"-]+)\s*=", line):
            full = [*section, *setting[1].replace('"', "").split(".")]
            if full == names[: len(full)]:
                return f":{number}"
    return ""
