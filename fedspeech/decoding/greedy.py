"""The most likely unit of every frame, repetitions joined, blanks removed (Graves et al. 2006)."""

import torch

from fedspeech.units import Units


def decode(logits: torch.Tensor, lengths: torch.Tensor, units: Units) -> list[str]:
    """Texts of a batch: logits (batch, frames, units), lengths (batch,) in frames."""
    best = logits.argmax(2)
    return [
        units.decode(torch.unique_consecutive(row[:length]).tolist())
        for row, length in zip(best, lengths.tolist(), strict=True)
    ]
