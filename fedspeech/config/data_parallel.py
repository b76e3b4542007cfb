"""Settings of training G data-parallel: many learners, and how they talk to each other.

Cui, Zhang, Finkler, Saon, Picheny, Kung, "Distributed Training of Deep Neural Network Acoustic
Models for Automatic Speech Recognition", IEEE Signal Processing Magazine 2020 (arXiv 2002.10502).
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fedspeech.config.comparison import SLOWEST, ComparisonSettings
from fedspeech.config.corpus import CorpusSettings, HeldOut
from fedspeech.config.engine import Patience, Processes, RaySettings
from fedspeech.config.model import FeatureSettings, ModelSettings, UnitSettings
from fedspeech.config.training import TrainingOfG
from fedspeech.config.values import (
    Count,
    Positive,
    PositiveFloat,
    Settings,
    Share,
    Whole,
    each_once,
    folder_name,
)

Method = Literal["allreduce", "parameter-server", "ring", "ad-psgd", "hierarchical", "bmuf"]
Momentum = Annotated[float, Field(ge=0, lt=1, strict=True)]
Slowness = Annotated[float, Field(ge=1, le=SLOWEST, strict=True)]
OF_ONE_METHOD = {"hook": "allreduce", "staleness": "parameter-server", "partner": "ad-psgd"}
OF_ROWS = {"node_size": "hierarchical", "block": "bmuf", "block_momentum": "bmuf"}
"""Also of one method, and of the rows of a comparison whatever `parallel.method` is."""
OF_EVERY_ROW = (*OF_ROWS, "form_seconds")
"""All of `parallel` that holds for the rows of a comparison: they say the rest themselves."""


class ParallelTraining(TrainingOfG):
    """How G is trained. `batch_size` is that of each learner: all of them together see `learners`
    times as many utterances at a time."""

    scale: PositiveFloat = 1.0
    """The large-batch recipe (Goyal et al. 2017): the rate rises in the warm-up from
    `learning_rate` to so many times it, and then decays as it would from there. At 1 it rises from
    zero."""


class ParallelSettings(Settings):
    """The learners, and how they talk to each other."""

    method: Method = "allreduce"
    """`allreduce` (synchronous, all with all), `parameter-server` (asynchronous, centralized),
    `ring` (synchronous, with both neighbours), `ad-psgd` (asynchronous, decentralized),
    `hierarchical` (allreduce inside a node, ad-psgd between nodes) or `bmuf` (blocks of steps of
    its own, with block momentum)."""
    learners: Processes = 2
    hook: Literal["none", "fp16", "powersgd"] = "none"
    """How `allreduce` packs gradients: as they are, in half the bits, or as matrices of rank 2
    (Vogels et al. 2019), whose error feedback begins anew where a run is gone on with."""
    staleness: Count | None = None
    """The most updates by others between a learner's pull from the parameter server and its push;
    None: as many as there are. At least learners - 1: so many there are if all take turns."""
    partner: Literal["ring", "random", "delay-by-one"] = "ring"
    """With whom an `ad-psgd` learner averages, of which those with even numbers ask and the others
    are asked: its neighbours by turns, or any that is asked; or with both neighbours, while it
    computes the gradient of its model one step before (Cui et al. 2021)."""
    node_size: Positive = 2
    """Learners in a node of `hierarchical`; with `engine.ray_address` they are on one machine."""
    block: Positive = 8
    """Steps in a block of `bmuf`."""
    block_momentum: Momentum | None = None
    """Of `bmuf`; None: 1 - 1 / learners (Chen & Huo 2016)."""
    slowed: tuple[Slowness, ...] = ()
    """How many times slower each learner computes; (1.0, 10.0): the second one ten times. Talking
    is not slowed."""
    processor: Share | None = None
    """The most of one processor that a learner takes for all it does, also while others wait; None:
    what there is. Where learners share processors, only so is one that waits of no use to the
    others."""
    form_seconds: Patience = 120.0
    """How long the process group may take to form."""

    @model_validator(mode="after")
    def _fits_the_method(self) -> "ParallelSettings":
        if wrong := self.strays(OF_ONE_METHOD):
            raise ValueError(wrong)
        if self.slowed and len(self.slowed) != self.learners:
            raise ValueError(
                f"slowed: expected one factor for each of {self.learners} learners, "
                f"found {len(self.slowed)}"
            )
        if self.staleness is not None and self.staleness < self.learners - 1:
            raise ValueError(
                f"staleness: with {self.learners} learners at least {self.learners - 1}, which is "
                f"what they have if they take turns, found {self.staleness}"
            )
        if self.method == "hierarchical" and self.learners % self.node_size:
            raise ValueError(
                f"node_size: {self.learners} learners make no whole nodes of {self.node_size}"
            )
        return self

    def strays(self, methods: Mapping[str, str]) -> str | None:
        """Which of some settings, each for one method, is not as usual though there is another
        method; None: none of them."""
        fields = type(self).model_fields
        wrong = (
            self.misplaced(key, methods)
            for key in methods
            if getattr(self, key) != fields[key].default
        )
        return next(filter(None, wrong), None)

    def misplaced(self, key: str, methods: Mapping[str, str]) -> str | None:
        """What is to be said of a setting that is for another method; None: it may be for this."""
        method = methods.get(key, self.method)
        if method == self.method:
            return None
        return f"{key}: is for {method}, found method {self.method!r}"

    def without(self, methods: Mapping[str, str]) -> "ParallelSettings":
        """These settings, and those that are for another method as usual."""
        fields = type(self).model_fields
        usual = {key: fields[key].default for key in methods if self.misplaced(key, methods)}
        return self.model_copy(update=usual)

    def member(self, number: int) -> str:
        """What one of those who talk to each other is called; a server comes after all learners."""
        return f"learner {number}" if number < self.learners else "the parameter server"

    @property
    def momentum(self) -> float:
        """Block momentum in force."""
        given = self.block_momentum
        return 1 - 1 / self.learners if given is None else given


class DataParallelConfig(Settings):
    """All settings of a run of kind `data-parallel`."""

    name: Annotated[str, folder_name] = "data-parallel"
    """Of the run, and of its folder `runs/NAME`."""
    kind: Literal["data-parallel"] = "data-parallel"
    seeds: tuple[Whole, ...] = (0,)
    """`fedspeech run` trains G with each of them, `fedspeech train` with the first one; the
    intervals' draws follow from the first, and its G is the run's."""
    corpus: CorpusSettings = CorpusSettings()
    test: HeldOut = HeldOut(speakers=8)
    features: FeatureSettings = FeatureSettings()
    units: UnitSettings = UnitSettings()
    model: ModelSettings = ModelSettings()
    training: ParallelTraining = ParallelTraining()
    parallel: ParallelSettings = ParallelSettings()
    engine: RaySettings = RaySettings()
    comparison: ComparisonSettings | None = None
    """What `fedspeech run` compares instead of training once, as `fedspeech train` does."""

    _each_once = field_validator("seeds")(each_once)

    @model_validator(mode="after")
    def _nothing_is_without_use(self, info: ValidationInfo) -> "DataParallelConfig":
        """Nodes and blocks may be those of a comparison. Where it was left out, which `context` has
        the name of, they are as usual.
        """
        if self.comparison is not None or (wrong := self.parallel.strays(OF_ROWS)) is None:
            return self
        if "comparison" in (info.context or ()):
            return self.model_copy(update={"parallel": self.parallel.without(OF_ROWS)})
        raise ValueError(f"parallel.{wrong}")

    @model_validator(mode="after")
    def _rows_can_be_made(self) -> "DataParallelConfig":
        compared, size = self.comparison, self.parallel.node_size
        if compared is None:
            return self
        for learners in compared.learners:
            if self.training.batch_size % learners:
                raise ValueError(
                    f"comparison.learners: {learners} learners cannot share batches of "
                    f"{self.training.batch_size} (training.batch_size) evenly"
                )
        for learners in sorted(compared.learners_of("hierarchical")):
            if learners % size:
                raise ValueError(
                    f"comparison.learners: {learners} learners make no whole nodes of {size} "
                    "(parallel.node_size) for the way hierarchical"
                )
        return self

    def in_vain(self, asked: Collection[str]) -> str | None:
        """Which of some settings, as `section.key`, is of no use, and why; None: none of them.

        The rows of a comparison have methods of their own, and a training has only one.
        """
        compared = [key for key in asked if key.split(".")[0] == "comparison"]
        if compared and self.comparison is None:
            return f"{compared[0]}: is for `fedspeech run`; `fedspeech train` compares nothing"
        for key in ParallelSettings.model_fields:
            if f"parallel.{key}" not in asked:
                continue
            if self.comparison is None:
                if wrong := self.parallel.misplaced(key, OF_ROWS):
                    return f"parallel.{wrong}"
            elif key not in OF_EVERY_ROW:
                return (
                    f"parallel.{key}: is for `fedspeech train`; `fedspeech run` compares what "
                    "[comparison] says"
                )
        return None

    @property
    def counted(self) -> str:
        """The setting that says how many learners there are."""
        return "parallel.learners" if self.comparison is None else "comparison.learners"

    @property
    def seed(self) -> int:
        """The first of the seeds."""
        return self.seeds[0]
