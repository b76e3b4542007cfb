"""The criteria for many models at once, as one stack: the losses of everybody's minibatch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from fedspeech.models import Stack
from fedspeech.models.stacked_rnnt import StackedRNNT
from fedspeech.models.stacked_tdnn import StackedTDNN
from fedspeech.tensors import Tensors
from fedspeech.training.criteria import ctc, rnnt
from fedspeech.training.criteria.rnnt import Spelled


class Minibatches(NamedTuple):
    """One minibatch of each of S models, padded to the same size."""

    features: torch.Tensor
    """(S, batch, frames, inputs)"""
    lengths: torch.Tensor
    """Frames (S, batch); 0 where a model has fewer utterances than another."""
    references: Sequence[Sequence[int]]
    """Of all utterances, the first model's first."""

    @property
    def there(self) -> torch.Tensor:
        """Which are utterances and not padding, bool (S, batch)."""
        return self.lengths > 0

    @property
    def owners(self) -> torch.Tensor:
        """The number of each utterance's model, (utterances,)."""
        return self.there.nonzero()[:, 0]


StackedCriterion = Callable[[Tensors, Minibatches, Sequence[torch.Tensor]], torch.Tensor]
"""(the models' tensors, minibatches, dropout masks) -> loss per utterance (utterances,)"""


def of(stack: Stack) -> StackedCriterion:
    """The criterion by which these models are trained."""
    if isinstance(stack, StackedRNNT):
        return partial(_rnnt, stack)
    return partial(_ctc, stack)


def _ctc(
    stack: StackedTDNN,
    tensors: Tensors,
    spoken: Minibatches,
    dropout: Sequence[torch.Tensor],
) -> torch.Tensor:
    logits, frames = stack(tensors, spoken.features, spoken.lengths, True, dropout)
    return ctc.loss(logits[spoken.there], frames[spoken.there], spoken.references)


def _rnnt(
    stack: StackedRNNT,
    tensors: Tensors,
    spoken: Minibatches,
    dropout: Sequence[torch.Tensor],
) -> torch.Tensor:
    encoded, steps = stack.encode(tensors, spoken.features, spoken.lengths, dropout)
    there = spoken.there
    texts = Spelled.of(spoken.references, there.device).begun
    padded = texts.new_zeros(*there.shape, texts.shape[1])
    padded[there] = texts
    predicted = stack.predict(tensors, padded, dropout)[there]
    lattice = partial(_lattice, stack, tensors, spoken, predicted)
    most = rnnt.most_cells(stack.model, 3)
    return rnnt.in_parts(lattice, most, [encoded[there]], steps[there], spoken.references)


def _lattice(
    stack: StackedRNNT,
    tensors: Tensors,
    spoken: Minibatches,
    predicted: torch.Tensor,
    part: Sequence[int],
    lengths: torch.Tensor,
    encoded: torch.Tensor,
) -> torch.Tensor:
    spelled, read = rnnt.part_of(spoken.references, predicted, part)
    logits = stack.join(tensors, spoken.owners[list(part)], encoded, read)
    return rnnt.of_logits(logits, lengths, spelled)
