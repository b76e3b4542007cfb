"""From a model's output to text: one search per file; `DECODERS` names the greedy ones."""

from collections.abc import Callable

import torch

from fedspeech import models
from fedspeech.decoding import greedy, transducer
from fedspeech.units import Units

Decoder = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, Units], list[str]]
"""(model, output (batch, steps, ...), lengths (batch,), units) -> texts"""

DECODERS: dict[str, Decoder] = {
    "ctc": lambda model, logits, lengths, units: greedy.decode(logits, lengths, units),
    "rnnt": transducer.decode,
}


def decode(
    model: torch.nn.Module, output: torch.Tensor, lengths: torch.Tensor, units: Units
) -> list[str]:
    """Texts of a batch that came out of the model, by the greedy search of its criterion."""
    return DECODERS[models.criterion(model)](model, output, lengths, units)
