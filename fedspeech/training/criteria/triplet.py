"""The triplet loss (Schroff, Kalenichenko, Philbin 2015, FaceNet), mined in the batch."""

from collections.abc import Sequence

import torch

MARGIN = 1.0
"""How much farther than the utterance's own phrase every other phrase has to be."""


def loss(
    distances: torch.Tensor, lengths: torch.Tensor, references: Sequence[Sequence[int]]
) -> torch.Tensor:
    """For each utterance the mean of max(0, MARGIN + d_own - d_other) over what is above zero.

    `distances` (batch, phrases) are squared, `references` have one phrase each, `lengths` do not
    count; the loss is (batch,). The triplets of an utterance, its own phrase and any other one are
    all taken, and those that are fulfilled already are left out of the mean, so that they do not
    drown the others (Hermans, Beyer, Leibe 2017, In Defense of the Triplet Loss, section 2).
    """
    own = torch.tensor([number for (number,) in references], device=distances.device)[:, None]
    violated = torch.relu(MARGIN + distances.gather(1, own) - distances)
    violated = violated.scatter(1, own, 0.0)
    return violated.sum(1) / (violated > 0).sum(1).clamp_min(1)
