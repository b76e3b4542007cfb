"""A recurrent neural network transducer (Graves 2012): it hears from left to right, and streams.

An LSTM encoder hears, an LSTM prediction network reads what was spelled so far, and a joint network
says which unit comes next, or that nothing does before the next step (the blank, unit 0).

Sizes of two papers, as near as their texts allow. Frames of 10 ms are taken three side by side, one
such step every 30 ms.

- `NEURAL_DIFF`: Macoskey, Strimel, Rastrow 2021, setting 1: 64.1 M with 64 log-mel energies and
  2,500 pieces. The projection to 640 is taken to stand behind encoder and prediction network, in
  front of the joint network, which gives 64.2 M. LSTM layers that project what they pass on, to
  themselves as well, would give 46 M.
- `TEACHER_41M`, `STUDENT_22M`, `TEACHER_57M`, `STUDENT_30M`: Zhao et al. 2022 (LCMR): 40.61, 21.71,
  57.4 and 30.11 M with 1,023 pieces and the blank. Between the four lie whole layers: encoders of
  4, 2, 6 and 3, prediction networks of 2, 1, 2 and 1. What the numbers of layers, the embedding
  and the joint network of 512 leave is an encoder that takes two steps as one after its first
  layer: our reading. With 80 energies the counts are the paper's in every digit that it gives;
  with 64 each is lower by 0.2 M.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from fedspeech.errors import ConfigError
from fedspeech.models.tdnn import Dropout, at_least_float32

BLANK = 0
BLANK_AT_START = 0.8
"""Probability of the blank in a fresh model. Speech has some such share of steps without a unit;
from equal probabilities a deep encoder stays for many epochs where it spells nothing."""
Network = Literal["encoder", "prediction"]
State = list[tuple[torch.Tensor, torch.Tensor]]
"""Of each LSTM layer: output (1, batch, units or projection), memory cells (1, batch, units)."""


@dataclass(frozen=True)
class Shape:
    """Sizes of an RNN-T. Raises ConfigError where they do not go together."""

    encoder_layers: int
    encoder_units: int
    prediction_layers: int
    prediction_units: int
    embedding: int
    joint: int
    """Both networks are projected to so many values, which the joint network adds."""
    stacking: int = 3
    """Frames of 10 ms that the encoder's first layer sees at a time."""
    subsampling: int = 3
    """Frames for each step of the output: as many times those of `stacking` as its second layer
    sees steps of the first one at a time."""
    projection: int = 0
    """Values that each layer of the encoder passes on, to itself as well (Sak, Senior, Beaufays
    2014); 0: as many as it has units."""
    bypass: bool = False
    """A layer adds what it takes to what it gives, where both have as many values (He et al. 2016).
    Deep encoders learn many times sooner with it; the papers' have none."""

    def __post_init__(self) -> None:
        if self.subsampling % self.stacking:
            raise ConfigError(
                f"subsampling: expected a multiple of stacking = {self.stacking}, found "
                f"{self.subsampling}"
            )
        if self.joined > 1 and self.encoder_layers == 1:
            raise ConfigError(
                f"subsampling: expected stacking = {self.stacking} with a single encoder layer, "
                f"behind which no steps can be joined, found {self.subsampling}"
            )
        if self.projection >= self.encoder_units:
            raise ConfigError(
                f"projection: expected less than encoder_units = {self.encoder_units}, found "
                f"{self.projection}"
            )

    @property
    def joined(self) -> int:
        """Steps of the encoder's first layer that its second one sees at a time."""
        return self.subsampling // self.stacking

    @property
    def encoder_outputs(self) -> int:
        """Values that each layer of the encoder passes on."""
        return self.projection or self.encoder_units


NEURAL_DIFF = Shape(6, 1024, 2, 1024, embedding=256, joint=640)
TEACHER_41M = Shape(4, 1024, 2, 512, embedding=512, joint=512, subsampling=6)
STUDENT_22M = Shape(2, 1024, 1, 512, embedding=512, joint=512, subsampling=6)
TEACHER_57M = Shape(6, 1024, 2, 512, embedding=512, joint=512, subsampling=6)
STUDENT_30M = Shape(3, 1024, 1, 512, embedding=512, joint=512, subsampling=6)
SMALL = Shape(3, 256, 1, 128, embedding=64, joint=128, subsampling=6)
TINY = Shape(2, 96, 1, 48, embedding=24, joint=48, subsampling=6)
TINY_DEEP = Shape(5, 96, 2, 48, embedding=24, joint=48, stacking=6, subsampling=6, bypass=True)
TINY_FLAT = replace(TINY_DEEP, encoder_layers=2, prediction_layers=1)
"""A student of `TINY_DEEP`."""


class RNNT(nn.Module):
    """Features (batch, frames, inputs) -> what the joint network hears (batch, steps, joint)."""

    criterion = "rnnt"

    def __init__(self, inputs: int, units: int, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.subsampling = shape.subsampling
        wide = shape.encoder_outputs * shape.joined
        sizes = [shape.stacking * inputs, wide, *[shape.encoder_outputs] * shape.encoder_layers]
        sizes = sizes[: shape.encoder_layers]
        self.encoder = _layers(sizes, shape.encoder_units, shape.projection)
        self.embedding = nn.Embedding(units, shape.embedding)
        sizes = [shape.embedding, *[shape.prediction_units] * (shape.prediction_layers - 1)]
        self.prediction = _layers(sizes, shape.prediction_units)
        self.dropout = Dropout(0.0)
        self.encoded = nn.Linear(shape.encoder_outputs, shape.joint)
        self.predicted = nn.Linear(shape.prediction_units, shape.joint, bias=False)
        self.output = nn.Linear(shape.joint, units)
        odds = BLANK_AT_START / (1 - BLANK_AT_START)
        with torch.no_grad():
            self.output.bias[BLANK] += math.log(odds * (units - 1))

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is heard, and how many steps of it; `lengths` (batch,) counts frames.

        Features are zero after each utterance's end. What is heard before it does not depend on
        what comes after.
        """
        encoded, _ = self.encode(features)
        return encoded, self.steps(lengths)

    def steps(self, lengths: torch.Tensor) -> torch.Tensor:
        """Steps of the output for frames, integers in any shape."""
        return torch.div(lengths + self.subsampling - 1, self.subsampling, rounding_mode="floor")

    def encode(
        self, features: torch.Tensor, state: State | None = None
    ) -> tuple[torch.Tensor, State]:
        """Features (batch, frames, inputs) -> (batch, ceil(frames / subsampling), joint).

        The state goes into the next call, for a stream in chunks. All chunks but the last one hold
        a multiple of `subsampling` frames.
        """
        shape, (batch, frames, _) = self.shape, features.shape
        x = nn.functional.pad(features, (0, 0, 0, -frames % self.subsampling))
        x = x.to(self.output.bias.dtype).reshape(batch, -1, shape.stacking * features.shape[2])
        layers = self.layers("encoder")
        x, first = self._run(layers[:1], x, state and state[:1])
        x = x.reshape(batch, -1, shape.joined * shape.encoder_outputs)
        x, rest = self._run(layers[1:], x, state and state[1:])
        return self.encoded(x), first + rest

    def predict(
        self, units: torch.Tensor, state: State | None = None
    ) -> tuple[torch.Tensor, State]:
        """What the joint network reads, (batch, units, joint), after each of (batch, units).

        A text begins with the blank.
        """
        x, state = self._run(self.layers("prediction"), self.embedding(units), state)
        return self.predicted(x), state

    def join(self, encoded: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Logits (..., units), at least float32, of both (..., joint); shapes are broadcast."""
        return at_least_float32(self.output(torch.tanh(encoded + predicted)))

    def layers(self, network: Network) -> list[nn.Module]:
        """The LSTM layers of one of the two networks, the input's layer first."""
        found = self.encoder if network == "encoder" else self.prediction
        return list(found)

    def _run(
        self, layers: Sequence[nn.Module], x: torch.Tensor, state: State | None
    ) -> tuple[torch.Tensor, State]:
        states: State = []
        for number, layer in enumerate(layers):
            own = not torch.is_grad_enabled() or bool(getattr(layer, "proj_size", 0))
            # On a processor, PyTorch learns no LSTM in bfloat16, or ten times more slowly; on a GPU
            # autocast runs it in float16, whatever was asked for.
            with torch.autocast(x.device.type, enabled=False), _own_lstm(own):
                y, after = layer(x, state[number] if state else None)
            x = x + self.dropout(y) if self.shape.bypass and x.shape == y.shape else self.dropout(y)
            states.append(after)
        return x, states


def _layers(inputs: Sequence[int], units: int, projection: int = 0) -> nn.ModuleList:
    return nn.ModuleList(
        nn.LSTM(size, units, batch_first=True, proj_size=projection) for size in inputs
    )


@contextmanager
def _own_lstm(wanted: bool) -> Iterator[None]:
    """PyTorch's own LSTM in the block if wanted, instead of oneDNN's.

    oneDNN's learns twice as fast, but lays the weights out anew in every call: for a few steps of
    one utterance that takes six times as long as the steps. Of a projection it warns that it has
    none.
    """
    set_flags: Any = torch.backends.mkldnn.set_flags
    before, *_ = set_flags(False if wanted else None, _fp32_precision=None)
    try:
        yield
    finally:
        set_flags(before, _fp32_precision=None)
