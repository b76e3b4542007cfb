"""Many RNN-Ts of one shape as one: every tensor has a leading axis over the models.

A step of an LSTM is one batched matrix product for all of them, so that a GPU starts as many
kernels for a hundred models as for one. `rnnt.py` is the readable model; tests hold the two equal.
"""

from collections.abc import Sequence

import torch
from torch import nn

from fedspeech.models.rnnt import RNNT
from fedspeech.models.tdnn import at_least_float32, dropout_mask
from fedspeech.tensors import Tensors


class StackedRNNT:
    """S models of an RNN-T's shape; their tensors (name -> (S, ...)) are handed to each call.

    `dropout` of a call has a mask for each layer, as `dropout_masks` draws them, with a leading
    axis over the models; or none.
    """

    def __init__(self, model: RNNT) -> None:
        self.model = model

    def dropout_masks(
        self, rate: float, size: tuple[int, int, int], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """One model's masks for each layer, (batch, steps or units, width), drawn as it draws them.

        `size` is the minibatch's: utterances, frames, units of the longest reference.
        """
        shape, (batch, frames, units) = self.model.shape, size
        steps = -(-frames // shape.subsampling)
        heard = [steps * shape.joined, *[steps] * (shape.encoder_layers - 1)]
        sizes = [(batch, count, shape.encoder_outputs) for count in heard]
        sizes += [(batch, units + 1, shape.prediction_units)] * shape.prediction_layers
        return [dropout_mask(each, rate, dtype) for each in sizes]

    def encode(
        self,
        tensors: Tensors,
        features: torch.Tensor,
        lengths: torch.Tensor,
        dropout: Sequence[torch.Tensor] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is heard, (S, batch, ceil(frames / subsampling), joint), and how many steps of it.

        `features` are (S, batch, frames, inputs), `lengths` (S, batch) counts frames.
        """
        shape, (count, batch, frames, inputs) = self.model.shape, features.shape
        x = nn.functional.pad(features, (0, 0, 0, -frames % shape.subsampling))
        x = x.to(tensors["output.bias"].dtype)
        x = x.reshape(count, batch, -1, shape.stacking * inputs)
        for number in range(shape.encoder_layers):
            x = self._layer(tensors, f"encoder.{number}", x, dropout[number : number + 1])
            if number == 0:
                x = x.reshape(count, batch, -1, shape.joined * shape.encoder_outputs)
        heard = _product(x, tensors["encoded.weight"], tensors["encoded.bias"])
        return heard, self.model.steps(lengths)

    def predict(
        self, tensors: Tensors, units: torch.Tensor, dropout: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        """What the joint network reads, (S, batch, units, joint), after each of (S, batch, units).

        A text begins with the blank.
        """
        whose = torch.arange(len(units), device=units.device)[:, None, None]
        x = tensors["embedding.weight"][whose, units.long()]
        for number in range(self.model.shape.prediction_layers):
            at = self.model.shape.encoder_layers + number
            x = self._layer(tensors, f"prediction.{number}", x, dropout[at : at + 1])
        return _product(x, tensors["predicted.weight"])

    def join(
        self,
        tensors: Tensors,
        owners: torch.Tensor,
        encoded: torch.Tensor,
        predicted: torch.Tensor,
    ) -> torch.Tensor:
        """Logits (batch, steps, units, vocabulary), at least float32, of some models' utterances.

        `owners` (batch,) says whose each is; what is heard is (batch, steps, joint), what is read
        (batch, units, joint).
        """
        x = torch.tanh(encoded[:, :, None] + predicted[:, None])
        weight, bias = tensors["output.weight"][owners], tensors["output.bias"][owners]
        return at_least_float32(_product(x, weight, bias))

    def _layer(
        self, tensors: Tensors, name: str, x: torch.Tensor, dropout: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        # As in the model, autocast has nothing to do with an LSTM.
        with torch.autocast(x.device.type, enabled=False):
            y = _lstm(tensors, name, x)
        for mask in dropout:
            y = y * mask
        return x + y if self.model.shape.bypass and x.shape == y.shape else y


def _product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """(S, ..., inputs) by (S, outputs, inputs) -> (S, ..., outputs)."""
    y = torch.matmul(x.flatten(1, -2), weight.transpose(1, 2))
    y = y if bias is None else y + bias[:, None]
    return y.reshape(*x.shape[:-1], y.shape[2])


def _lstm(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    """(S, batch, steps, inputs) -> (S, batch, steps, outputs); gates are in PyTorch's order."""
    bias = tensors[f"{name}.bias_ih_l0"] + tensors[f"{name}.bias_hh_l0"]
    heard = _product(x, tensors[f"{name}.weight_ih_l0"], bias)
    recurrent = tensors[f"{name}.weight_hh_l0"].transpose(1, 2)
    projection = tensors.get(f"{name}.weight_hr_l0")
    output = x.new_zeros(*x.shape[:2], recurrent.shape[1])
    cells = x.new_zeros(*x.shape[:2], recurrent.shape[2] // 4)
    outputs = []
    # `unbind` has one gradient for all steps, where each slice of its own would have one as large.
    for step in heard.unbind(2):
        gates = torch.baddbmm(step, output, recurrent).chunk(4, 2)
        put, keep, give = (torch.sigmoid(gates[i]) for i in (0, 1, 3))
        cells = keep * cells + put * torch.tanh(gates[2])
        output = give * torch.tanh(cells)
        if projection is not None:
            output = torch.matmul(output, projection.transpose(1, 2))
        outputs.append(output)
    return torch.stack(outputs, 2)
