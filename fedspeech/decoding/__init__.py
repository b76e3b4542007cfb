"""From a model's output to text: one search per file; `DECODERS` names the greedy ones."""

from collections.abc import Callable

import torch

from fedspeech import models
from fedspeech.decoding import beam, greedy, transducer
from fedspeech.errors import ModelError
from fedspeech.models.rnnt import RNNT
from fedspeech.units import Units

Decoder = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, Units], list[str]]
"""(model, output (batch, steps, ...), lengths (batch,), units) -> texts"""

DECODERS: dict[str, Decoder] = {
    "ctc": lambda model, logits, lengths, units: greedy.decode(logits, lengths, units),
    "rnnt": transducer.decode,
}


def decode(
    model: torch.nn.Module,
    output: torch.Tensor,
    lengths: torch.Tensor,
    units: Units,
    width: int = 1,
) -> list[str]:
    """Texts of a batch that came out of the model.

    `width` 1 is the greedy search of its criterion, more is a beam. Raises ModelError for a beam
    with anything but an RNN-T.
    """
    if width == 1:
        return DECODERS[models.criterion(model)](model, output, lengths, units)
    if not isinstance(model, RNNT):
        raise ModelError(f"expected an RNN-T for a beam of {width}, found {type(model).__name__}")
    return beam.decode(model, output, lengths, units, width)
