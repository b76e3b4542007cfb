"""What a model is trained for: one criterion per file, and `CRITERIA`, the dict that names them.

A criterion takes the encoder's output and the references; the encoder knows nothing of it.
"""

from collections.abc import Callable, Sequence

import torch

from fedspeech.training.criteria import ctc

Criterion = Callable[[torch.Tensor, torch.Tensor, Sequence[Sequence[int]]], torch.Tensor]
"""(logits (batch, frames, units), lengths (batch,), unit numbers) -> loss per utterance (batch,)"""

CRITERIA: dict[str, Criterion] = {"ctc": ctc.loss}
