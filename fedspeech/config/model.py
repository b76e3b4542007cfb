"""Settings of what the acoustic model sees, spells with and is."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedspeech.config.values import Count, Fraction, Positive, PositiveFloat, Real, Settings

LEAST_SPEED, MOST_SPEED = 0.5, 2.0
MOST = 2**14
"""Of what a model may have of anything: with more it would not be refused but take all memory."""
Size = Annotated[int, Field(ge=1, le=MOST, strict=True)]


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
    """The acoustic model, by its name in `fedspeech.models.MODELS`, and sizes that are to be others
    than those that the name stands for (`fedspeech models` lists them).

    `width` is for a TDNN, all others are for an RNN-T.
    """

    name: str = "tdnn-small"
    width: Size | None = None
    """Channels of every hidden layer."""
    encoder_layers: Size | None = None
    encoder_units: Size | None = None
    """Of each LSTM layer of the encoder."""
    projection: Annotated[int, Field(ge=0, le=MOST, strict=True)] | None = None
    """Values that each layer of the encoder passes on, to itself as well; less than it has units.
    0: as many."""
    prediction_layers: Size | None = None
    prediction_units: Size | None = None
    embedding: Size | None = None
    """Values that the prediction network reads of a unit."""
    joint: Size | None = None
    """Values that both networks are projected to, which the joint network adds."""
    stacking: Size | None = None
    """Frames of 10 ms that the encoder's first layer sees at a time."""
    subsampling: Size | None = None
    """Frames of 10 ms for each step of the output: a multiple of `stacking`. The steps that this
    makes one are joined behind the encoder's first layer."""
    bypass: Annotated[bool, Field(strict=True)] | None = None
    """Whether a layer adds what it takes to what it gives, where both have as many values."""

    @property
    def sizes(self) -> dict[str, int]:
        """Those that are others than the name says."""
        found = {name: getattr(self, name) for name in ModelSettings.model_fields if name != "name"}
        return {name: value for name, value in found.items() if value is not None}
