"""Connectionist temporal classification (Graves et al. 2006)."""

from collections.abc import Sequence

import torch


def loss(
    logits: torch.Tensor, lengths: torch.Tensor, references: Sequence[Sequence[int]]
) -> torch.Tensor:
    """-log p(reference | logits) in nats, float32 (batch,); unit 0 is the blank.

    0 where a reference needs more frames than there are: such an utterance teaches nothing.
    """
    spelled = [number for reference in references for number in reference]
    return torch.nn.functional.ctc_loss(
        logits.log_softmax(2).transpose(0, 1),
        torch.tensor(spelled, dtype=torch.long, device=logits.device),
        lengths,
        torch.tensor([len(reference) for reference in references], device=logits.device),
        reduction="none",
        zero_infinity=True,
    )
