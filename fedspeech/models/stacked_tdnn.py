"""Many TDNNs of one shape as one: every tensor has a leading axis over the models.

Convolutions are batched matrix products over concatenated frames, so that a GPU starts as many
kernels for a hundred models as for one. `tdnn.py` is the readable model; tests hold the two equal.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fedspeech.models.tdnn import (
    BYPASS,
    EPSILON,
    LEAST_VARIANCE,
    MOMENTUM,
    SUBSAMPLING,
    TDNN,
    TDNNLayer,
    at_least_float32,
    dropout_mask,
)


class StackedTDNN:
    """S models of a TDNN's shape; their tensors (name -> (S, ...)) are handed to each call."""

    def __init__(self, model: TDNN) -> None:
        self._layers: list[nn.Conv1d] = []
        for layer in model.tdnn:
            assert isinstance(layer, TDNNLayer)
            self._layers.append(layer.conv)

    def dropout_masks(
        self, rate: float, size: tuple[int, int, int], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """One model's masks for each layer, (batch, width, output frames), drawn as it draws them.

        `size` is the minibatch's: utterances, frames, units of the longest reference.
        """
        batch, frames, _ = size
        steps = -(-frames // SUBSAMPLING)
        shapes = [(batch, conv.out_channels, steps) for conv in self._layers]
        return [dropout_mask(shape, rate, dtype) for shape in shapes]

    def __call__(
        self,
        tensors: Mapping[str, torch.Tensor],
        features: torch.Tensor,
        lengths: torch.Tensor,
        training: bool = False,
        dropout: Sequence[torch.Tensor] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (S, batch, ceil(frames / 3), units) and their lengths (S or 1, batch).

        `features` are (S or 1, batch, frames, inputs): 1 where all models see the same. In training
        the running statistics in `tensors` move. `dropout` has a mask (S, batch, width, frames)
        for each layer, or none.
        """
        lengths = torch.div(lengths + SUBSAMPLING - 1, SUBSAMPLING, rounding_mode="floor")
        frames = -(-features.shape[2] // SUBSAMPLING)
        present = torch.arange(frames, device=features.device) < lengths[..., None]
        mask = present[:, None].to(features.dtype)
        x = features.permute(0, 3, 1, 2).to(tensors["output.weight"].dtype)
        for number, conv in enumerate(self._layers):
            own = {name: tensors[f"tdnn.{number}.{name}"] for name in LAYER}
            y = _convolve(conv, own["conv.weight"], own["conv.bias"], x, frames)
            y = _normalize(own, torch.relu(y), mask, training)
            y = y * dropout[number].transpose(1, 2) if dropout else y
            x = y * mask if number == 0 else y * mask + BYPASS * x
        weight, bias = tensors["output.weight"][..., 0], tensors["output.bias"]
        logits = torch.matmul(weight, x.flatten(2)) + bias[..., None]
        logits = at_least_float32(logits).reshape(*logits.shape[:2], *x.shape[2:])
        return logits.permute(0, 2, 3, 1), lengths


LAYER = (
    *("conv.weight", "conv.bias", "norm.weight", "norm.bias"),
    *("norm.running_mean", "norm.running_var"),
)
"""The tensors of one layer."""


def _convolve(
    conv: nn.Conv1d, weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, frames: int
) -> torch.Tensor:
    """(S or 1, inputs, batch, frames before) -> (S, outputs, batch, frames)."""
    kernel, stride, dilation = conv.kernel_size[0], conv.stride[0], conv.dilation[0]
    padding = int(conv.padding[0])
    x = nn.functional.pad(x, [padding, padding])
    span = stride * (frames - 1) + 1
    seen = [x[..., k * dilation : k * dilation + span : stride] for k in range(kernel)]
    joined = torch.cat(seen, 1)
    flat = weight.transpose(2, 3).flatten(2)
    y = torch.matmul(flat, joined.flatten(2)) + bias[..., None]
    return y.reshape(*y.shape[:2], *joined.shape[2:])


def _normalize(
    own: Mapping[str, torch.Tensor], x: torch.Tensor, mask: torch.Tensor, training: bool
) -> torch.Tensor:
    """`MaskedBatchNorm` for every model; x is (S, channels, batch, frames)."""
    mean, variance = own["norm.running_mean"], own["norm.running_var"]
    if training:
        moving = mean, variance
        mean, variance = _measure(x, mask, *moving)
    else:
        variance = variance.clamp_min(LEAST_VARIANCE)
    scale = own["norm.weight"] * torch.rsqrt(variance + EPSILON)
    shift = own["norm.bias"] - mean * scale
    return x * scale[..., None, None] + shift[..., None, None]


def _measure(
    x: torch.Tensor, mask: torch.Tensor, running_mean: torch.Tensor, running_var: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    count = mask.sum((1, 2, 3))[:, None]
    x = at_least_float32(x) * mask
    mean = x.sum((2, 3)) / count
    variance = ((x - mean[..., None, None]) * mask).square().sum((2, 3)) / count
    with torch.no_grad():
        running_mean.lerp_(mean.detach(), MOMENTUM)
        running_var.lerp_(variance.detach() * count / (count - 1).clamp_min(1), MOMENTUM)
    return mean, variance
