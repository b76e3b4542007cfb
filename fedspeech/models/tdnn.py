"""A time-delay neural network: convolutions over time with growing context.

Every layer but the first adds 0.66 of its input to its output, as the bypass of Kaldi's factorized
TDNN does (Povey et al. 2018): without it the same model needs many times the updates.

The input layer sees 9 frames to each side (19 frames, 760 values with 40 features) at every third
frame, so that everything after it runs at a third of the frame rate.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

CONTEXT = 9
SUBSAMPLING = 3
BYPASS = 0.66
MOMENTUM = 0.1
EPSILON = 1e-5
LEAST_VARIANCE = 1e-2
"""Where others have some 10. Channels behind a ReLU fall silent in training, and their variance to
nothing; divided by that, one that fires all the same later would be 300 times too loud.
"""
KEPT = 3
"""Tensors of a layer's output's size that training keeps of it until the gradient comes back."""
_AGAIN: ContextVar[bool] = ContextVar("again", default=False)
"""Whether a layer is computed a second time, for its gradient alone."""


class Layer(NamedTuple):
    """How many frames a hidden layer sees, and how far apart; the first layer's are fixed."""

    kernel: int
    dilation: int = 1


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """x, in float32 where it has fewer bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class MaskedBatchNorm(nn.Module):
    """Batch normalization (Ioffe & Szegedy 2015) over the frames that are there, not the padding.

    Once it is trained a channel's variance counts as `LEAST_VARIANCE` at least.

    In training, an utterance's neighbours in the batch enter through the statistics only, and how
    far the batch was padded not at all. Where a batch is cut among learners, `gathered` gives of
    what one of them measures (values,) that of all (learners, values), and the statistics are those
    of the whole batch.
    """

    gathered: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: torch.Tensor
        self.running_var: torch.Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """x is (batch, channels, frames), present is 1 or 0 of shape (batch, 1, frames)."""
        if self.training:
            mean, variance = self._measure(x, present)
        else:
            mean, variance = self.running_mean, self.running_var.clamp_min(LEAST_VARIANCE)
        scale = self.weight * torch.rsqrt(variance + EPSILON)
        shift = self.bias - mean * scale
        return x * scale[:, None] + shift[:, None]

    def _measure(self, x: torch.Tensor, present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = present.sum()
        x = at_least_float32(x) * present
        mean = x.sum((0, 2)) / count
        variance = ((x - mean[:, None]) * present).square().sum((0, 2)) / count
        if self.gathered is not None:
            parts = self.gathered(
                torch.stack([count.to(mean.dtype).expand_as(mean), mean, variance])
            )
            count, mean, variance = joined(*parts.unbind(1))
        if not _AGAIN.get():
            self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1))
        return mean, variance

    @torch.no_grad()
    def _remember(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        self.running_mean.lerp_(mean, MOMENTUM)
        self.running_var.lerp_(variance, MOMENTUM)


def joined(
    counts: torch.Tensor, means: torch.Tensor, variances: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Count, mean and variance (channels,) of what has these in its parts (parts, channels).

    Chan, Golub, LeVeque 1983: nothing cancels out.
    """
    # With a gradient, which is that of a constant, what is remembered would be kept for it, and no
    # recomputation of the layer keeps that again.
    counts = counts.detach()
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - mean).square())).sum(0) / count
    return count, mean, variance


@contextmanager
def _again() -> Iterator[None]:
    token = _AGAIN.set(True)
    try:
        yield
    finally:
        _AGAIN.reset(token)


def dropout_mask(shape: Sequence[int], rate: float, dtype: torch.dtype) -> torch.Tensor:
    """0 with probability `rate`, else 1 / (1 - rate), by PyTorch's generator of the processor.

    A GPU's own generator would draw other masks for one model than for many of them in a stack.
    """
    return nn.functional.dropout(torch.ones(*shape, dtype=dtype), rate)


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014) with masks that are the same on every device."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x in any shape, some of it zero in training."""
        if not self.training or self.p == 0:
            return x
        return x * dropout_mask(x.shape, self.p, x.dtype).to(x.device)


class TDNNLayer(nn.Module):
    """Convolution, rectifier, batch normalization, dropout."""

    def __init__(self, inputs: int, width: int, kernel: int, dilation: int, stride: int) -> None:
        super().__init__()
        padding = (kernel - 1) // 2 * dilation
        self.conv = nn.Conv1d(inputs, width, kernel, stride, padding, dilation)
        self.norm = MaskedBatchNorm(width)
        self.dropout = Dropout(0.0)

    def forward(self, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """(batch, inputs, frames) -> (batch, width, frames / stride), zero where nothing is."""
        x = self.norm(torch.relu(self.conv(x)), present)
        dropped: torch.Tensor = self.dropout(x)
        return dropped * present


@dataclass(frozen=True)
class Shape:
    """Sizes of a TDNN."""

    width: int
    """Channels of every hidden layer."""
    layers: tuple[Layer, ...]


class TDNN(nn.Module):
    """Features (batch, frames, inputs) -> logits (batch, ceil(frames / 3), units).

    Where `recomputes` is set, training keeps nothing of a layer but what went into it, and computes
    the layer once more for its gradient (Chen et al. 2016, Training Deep Nets with Sublinear Memory
    Cost): a third more time, a fraction of the memory, and the same bits.
    """

    criterion = "ctc"
    subsampling = SUBSAMPLING
    recomputes = False

    def __init__(self, inputs: int, units: int, shape: Shape) -> None:
        super().__init__()
        width, layers = shape.width, shape.layers
        first = TDNNLayer(inputs, width, 2 * CONTEXT + 1, 1, SUBSAMPLING)
        rest = (TDNNLayer(width, width, layer.kernel, layer.dilation, 1) for layer in layers[1:])
        self.tdnn = nn.ModuleList([first, *rest])
        self.output = nn.Conv1d(width, units, 1)

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and their lengths in frames; `lengths` (batch,) counts input frames.

        Logits are float32, or float64 where the weights are.
        """
        lengths = torch.div(lengths + SUBSAMPLING - 1, SUBSAMPLING, rounding_mode="floor")
        frames = -(-features.shape[1] // SUBSAMPLING)
        present = torch.arange(frames, device=features.device) < lengths[:, None]
        mask = present[:, None].to(features.dtype)
        x = features.transpose(1, 2).to(self.output.weight.dtype)
        for number in range(len(self.tdnn)):
            x = self._layer(number, x, mask)
        return at_least_float32(self.output(x)).transpose(1, 2), lengths

    def _layer(self, number: int, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if not (self.recomputes and self.training):
            return self._computed(number, x, mask)
        once: torch.Tensor = checkpoint(
            self._computed,
            *(number, x, mask),
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _again()),
        )
        return once

    def _computed(self, number: int, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.tdnn[number](x, mask)
        return y if number == 0 else y + BYPASS * x

    def kept_bytes(self, batch: int, frames: int) -> int:
        """What training keeps of all layers for a batch of so many input frames, about."""
        width = self.output.in_channels
        return KEPT * 4 * len(self.tdnn) * batch * width * -(-frames // SUBSAMPLING)
