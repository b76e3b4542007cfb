"""Settings of comparing the ways to train data-parallel, as Cui et al. 2020 do."""

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from fedspeech.config.engine import Processes
from fedspeech.config.values import NonNegative, Positive, PositiveFloat, Settings, Share, each_once

Way = Literal[
    "allreduce",
    "parameter-server",
    "ring",
    "ad-psgd ring",
    "ad-psgd random",
    "ad-psgd delay-by-one",
    "hierarchical",
    "bmuf",
]
"""A method; of `ad-psgd`, with its partner."""
SLOWEST = 10_000.0
"""How many times slower a learner is made at most: what is more is a slip."""
Ways = Annotated[tuple[Way, ...], Field(min_length=1)]


class LinkSettings(Settings):
    """What learners talk over, where that is simulated."""

    bandwidth: PositiveFloat
    """Bytes in a second, each way."""
    latency: NonNegative
    """Seconds."""


class SimulatedSettings(Settings):
    """For which learners and on which network the seconds of an epoch are simulated."""

    learners: Annotated[tuple[Processes, ...], Field(min_length=1)] = (1, 2, 4, 8, 16, 32, 64, 128)
    network: LinkSettings = LinkSettings(bandwidth=1.25e9, latency=5e-5)
    """Of these learners, each with a processor of its own: Ethernet of 10 Gbit/s."""
    node: LinkSettings | None = None
    """Between learners of one node of `parallel.node_size`; None: as between all others."""


class ComparisonSettings(Settings):
    """What is compared; all with as many epochs, and with each of the seeds but where learners are
    held to a share of a processor, which takes long and is about time: with the first one.

    The base batch size is `training.batch_size` for all learners of a row together, so that each of
    n learners has an n-th of it. Of `parallel` only what is said of nodes, of blocks and of the
    group's forming holds for the rows.
    """

    ways: Ways = get_args(Way)
    """Compared at the base batch size with every number of learners."""
    learners: Annotated[tuple[Processes, ...], Field(min_length=1)] = (1, 2, 4)
    """One learner is the same whatever the method, and a single row; but with `ad-psgd
    delay-by-one` its gradients are a step late as well, and it has a row of its own."""
    closer: tuple[Way, ...] = ("allreduce", "ad-psgd ring")
    """Compared with larger batches and with a straggler as well, with the most learners."""
    larger: tuple[Positive, ...] = (4, 16, 64)
    """Batch sizes, times the base one; none beyond the corpus. The learning rate grows with the
    square root, as Adam wants it (Malladi et al. 2022), by the recipe of `training.scale`."""
    straggler: Annotated[float, Field(gt=1, le=SLOWEST, strict=True)] = 10.0
    """How many times slower the last learner is made."""
    processor: Share = 0.4
    """The most of one processor that a learner takes, in the rows with a straggler and in those
    that they are compared with: four of them leave something of two cores for all else."""
    simulated: SimulatedSettings = SimulatedSettings()

    _each_once = field_validator("ways", "learners")(each_once)

    def learners_of(self, way: Way) -> set[int]:
        """With how many learners a way is compared."""
        several = {learners for learners in self.learners if learners > 1 and way in self.ways}
        return several | ({max(self.learners)} if way in self.closer else set())
