"""Settings of rounds: what is compared, who takes part, when a round has failed."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fedspeech.config.values import (
    Available,
    Fraction,
    NonNegative,
    Positive,
    PositiveFloat,
    Sample,
    Settings,
)


class ContinueFrom(Settings):
    """Where the next round's fine-tuning starts."""

    base: str = "kbest"
    alpha: Fraction = 0.5


class ImproveSettings(Settings):
    """An ordinary Flower strategy that improves G over rounds before personalization."""

    strategy: str = Field("flwr.serverapp.strategy:FedAvg", alias="class")
    rounds: Positive = 1
    """Its own, before those of personalization."""
    options: dict[str, Any] = Field(default_factory=dict)
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
    spread: Annotated[float, Field(ge=0, le=10, strict=True)] = 0.0
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


class DeploymentSettings(Settings):
    """How long the boxes of a deployment are waited for, in real seconds."""

    boxes: Positive = 2
    """How many are waited for before the run begins."""
    wait: PositiveFloat = 600.0
    """For so many boxes; then the run begins with those that are there."""
    deadline: PositiveFloat = 3600.0
    """For a box's answer, from its question or the answer before; then it ends without the box."""
    late: Literal["drop", "next-round"] = "next-round"
    """Whether a P_s that was not there by the deadline is lost, or taken in a later round."""


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
    deployment: DeploymentSettings | None = None
    """Counts where `engine.grid` is `deployment`; simulated devices are there at once."""

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

    @property
    def first_base(self) -> str:
        """The base that is reported first."""
        return self.chosen_base or ("kbest" if "kbest" in self.bases else self.bases[0])
