"""What a model is trained for: one criterion per file, and `CRITERIA`, the dict that names them.

A criterion takes the encoder's output and the references; the encoder knows nothing of it.
"""

from collections.abc import Callable, Sequence

import torch

from fedspeech.training.criteria import ctc, triplet

Criterion = Callable[[torch.Tensor, torch.Tensor, Sequence[Sequence[int]]], torch.Tensor]
"""(logits (batch, frames, units), lengths (batch,), unit numbers) -> loss per utterance (batch,)

`triplet` takes distances (batch, phrases) and the number of each utterance's phrase."""

CRITERIA: dict[str, Criterion] = {"ctc": ctc.loss, "triplet": triplet.loss}
