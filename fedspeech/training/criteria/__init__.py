"""What a model is trained for: one criterion per file, and `CRITERIA`, the dict that names them.

A model says by which it is trained (`criterion`). A criterion takes what came out of the model and
the references. It sees the model as well: a transducer has parts that read the references.
"""

from collections.abc import Callable, Sequence

import torch

from fedspeech import models
from fedspeech.training.criteria import ctc, rnnt, triplet

Criterion = Callable[[torch.Tensor, torch.Tensor, Sequence[Sequence[int]]], torch.Tensor]
"""(output (batch, frames, ...), lengths (batch,), unit numbers) -> loss per utterance (batch,)

`triplet` takes distances (batch, phrases) and the number of each utterance's phrase."""

CRITERIA: dict[str, Callable[[torch.nn.Module], Criterion]] = {
    "ctc": lambda model: ctc.loss,
    "rnnt": rnnt.of,
    "triplet": lambda model: triplet.loss,
}


def of(model: torch.nn.Module) -> Criterion:
    """The criterion by which this model is trained."""
    return CRITERIA[models.criterion(model)](model)
