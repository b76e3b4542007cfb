"""The settings of a run: one TOML file, validated whole before anything starts.

`Config` is all of a personalization, `NeuralDiffConfig` all of a run of diffs, `DistillationConfig`
all of a distillation, `DataParallelConfig` all of a data-parallel training; the sections are in
the files beside this one, each setting with its meaning.
"""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, ValidationError, model_validator

from fedspeech.config import settings_file
from fedspeech.config.budget import BudgetSettings
from fedspeech.config.corpus import CorpusSettings, PartitionSettings
from fedspeech.config.data_parallel import DataParallelConfig
from fedspeech.config.distillation import DistillationConfig
from fedspeech.config.engine import EngineSettings
from fedspeech.config.federation import DeploymentSettings, FederationSettings
from fedspeech.config.model import FeatureSettings, ModelSettings, UnitSettings
from fedspeech.config.neural_diff import NeuralDiffConfig
from fedspeech.config.training import GenericSettings, PersonalSettings
from fedspeech.config.values import Settings, Whole, folder_name
from fedspeech.errors import ConfigError


class Config(Settings):
    """All settings of a run of kind `personalization`."""

    name: Annotated[str, folder_name] = "personalization"
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
    rules: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of each aggregation rule, by its name; `class = "package:Class"` names its code."""
    budget: BudgetSettings = BudgetSettings()
    engine: EngineSettings = EngineSettings()

    @model_validator(mode="after")
    def _boxes_take_their_own_time(self) -> "Config":
        if self.engine.grid == "deployment" and self.federation.participation is not None:
            raise ValueError(
                "federation.participation is simulated time; boxes have federation.deployment"
            )
        return self

    @model_validator(mode="after")
    def _boxes_are_waited_for(self) -> "Config":
        """A run on boxes says how, so that it can be resumed with some of it changed."""
        if self.engine.grid == "deployment" and self.federation.deployment is None:
            deployed = self.federation.model_copy(update={"deployment": DeploymentSettings()})
            return self.model_copy(update={"federation": deployed})
        return self

    @property
    def deployment(self) -> DeploymentSettings | None:
        """How long boxes are waited for; None where devices are simulated."""
        return self.federation.deployment if self.engine.grid == "deployment" else None


Experiment = Config | NeuralDiffConfig | DistillationConfig | DataParallelConfig
KINDS: dict[str, type[Experiment]] = {
    "personalization": Config,
    "neural-diff": NeuralDiffConfig,
    "distillation": DistillationConfig,
    "data-parallel": DataParallelConfig,
}


def load(path: Path, overrides: Sequence[str] = (), without: Collection[str] = ()) -> Experiment:
    """Read a TOML file and what it extends, apply `section.key=value` overrides, validate.

    Sections of `without` are as if they were not there. `kind` says which settings there are.
    Raises ConfigError naming file, line, what was found and what was expected.
    """
    table, paths = settings_file.read(path)
    for override in overrides:
        settings_file.override(table, override)
    left_out = {key for key in table if key in without}
    table = {key: value for key, value in table.items() if key not in left_out}
    kind = table.get("kind", "personalization")
    if not isinstance(kind, str) or kind not in KINDS:
        where = settings_file.where(["kind"], paths, overrides)
        known = ", ".join(KINDS)
        raise ConfigError(f"{where}: kind: expected one of {known}, found {kind!r}")
    try:
        return KINDS[kind].model_validate(table, context=left_out)
    except ValidationError as error:
        lines = [_explain(KINDS[kind], item, paths, overrides) for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None


@contextmanager
def located(settings: Experiment, path: Path, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Let a ConfigError of the block that begins with a setting say where it was made, as `load`
    does. `settings` are what that read from the file and the overrides.
    """
    _, paths = settings_file.read(path)
    try:
        yield
    except ConfigError as error:
        named = re.match(r"([\w.\"-]+)( = [^:]*)?: ", str(error))
        keys = settings_file.keys_of(named[1]) if named else []
        if not keys or keys[0] not in type(settings).model_fields:
            raise
        raise ConfigError(f"{settings_file.where(keys, paths, overrides)}: {error}") from None


def dump(config: Experiment) -> str:
    """The settings as TOML with every default spelled out; what is None is left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True, by_alias=True))


EXPECTED = {
    "dict_type": "expected a table",
    "model_type": "expected a table",
    "tuple_type": "expected a list",
}
"""Where pydantic speaks of Python's types and not of TOML's."""


def _explain(
    schema: type[Settings],
    item: Mapping[str, Any],
    paths: Sequence[Path],
    overrides: Sequence[str],
) -> str:
    keys = [str(part) for part in item["loc"]]
    # What is told of the settings as a whole begins with the name of the one that is at fault.
    named = re.match(r"Value error, ([\w.]+): ", item["msg"])
    at = keys or (named[1].split(".") if named else [])
    name = settings_file.dotted(keys) or "settings"
    where = f"{settings_file.where(at, paths, overrides)}: {name}"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(keys[-1], _known(schema, keys[:-1]), n=1, cutoff=0.4)
        hint = f"; the nearest known one is {near[0]}" if near else ""
        return f"{where}: unknown setting{hint}"
    message = EXPECTED.get(item["type"], item["msg"].removeprefix("Value error, "))
    found = "" if isinstance(item["input"], dict) else f", found {item['input']!r}"
    return f"{where}: {message}{found}"


def _known(schema: type[Settings], section: Sequence[str]) -> list[str]:
    model: Any = schema
    for name in section:
        fields = {f.alias or key: f for key, f in model.model_fields.items()}
        annotation = fields[name].annotation if name in fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, Settings)), None)
        if model is None:
            return []
    return [field.alias or key for key, field in model.model_fields.items()]
