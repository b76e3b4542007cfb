"""Settings of training G and of fine-tuning P_s."""

from typing import Literal

from pydantic import field_validator, model_validator

from fedspeech.config.model import AugmentationSettings, PersonalAugmentation
from fedspeech.config.values import Fraction, NonNegative, Positive, PositiveFloat, Settings


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
    hold: Fraction = 0.0
    """The share of updates after the warm-up in which the rate stays at its greatest."""
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

    @model_validator(mode="after")
    def _time_to_decay(self) -> "Optimization":
        if self.warmup + self.hold > 1:
            raise ValueError(
                f"warmup and hold: expected at most 1 together, found {self.warmup + self.hold:g}"
            )
        return self


class OneOfMany(Optimization):
    """One of the trainings of a run that is nothing else: so many have few updates each, and so
    little augmentation as in fine-tuning."""

    batch_size: Positive = 16
    final_learning_rate: PositiveFloat = 2e-5
    decay: Literal["exponential", "cosine"] = "cosine"
    augmentation: PersonalAugmentation = PersonalAugmentation()


class TrainingOfG(Optimization):
    """How G goes through much speech of many speakers."""

    epochs: Positive = 40
    batch_size: Positive = 16
    learning_rate: PositiveFloat = 3e-3
    final_learning_rate: PositiveFloat = 2e-5
    decay: Literal["exponential", "cosine"] = "cosine"
    warmup: Fraction = 0.1
    weight_decay: NonNegative = 0.01
    clean: Fraction = 0.1


class GenericSettings(TrainingOfG):
    """How G is trained on one machine."""

    patience: Positive = 15
    """Stop after so many epochs without a better WER on the development speakers."""
    threads: Positive = 2
    """Of PyTorch, while G is trained on a processor; another number gives other roundings."""
    model: str | None = None
    """A safetensors file to take as G instead of training one."""
    releases: str | None = None
    """A folder that keeps the generations of G from run to run. This run's G becomes the next one,
    as a diff within `budget.generic`; a device that holds an earlier one is sent what leads to it.
    """
    signing_key: str | None = None
    """The file of a private key (`fedspeech keys make`) that signs the releases in that folder.
    Where it is kept elsewhere, `fedspeech keys sign` does. Devices that have pinned a key take
    nothing that is not signed by it."""

    @model_validator(mode="after")
    def _releases_are_signed(self) -> "GenericSettings":
        if self.signing_key is not None and self.releases is None:
            raise ValueError("signing_key: expected generic.releases, whose releases it signs")
        return self


class PersonalSettings(Optimization):
    """How every client fine-tunes; equal for all of them."""

    epochs: Positive = 12
    batch_size: Positive = 16
    learning_rate: PositiveFloat = 5e-4
    final_learning_rate: PositiveFloat = 5e-5
    augmentation: PersonalAugmentation = PersonalAugmentation()
