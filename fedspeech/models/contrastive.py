"""A contrastive model of speech and phrases: both end as points, and near is what is meant.

Macoskey, Strimel, Rastrow, "Learning a Neural Diff for Speech Models", 2021 (arXiv 2108.01561),
setting 2: a speech encoder of 4 LSTM layers of 128, a text encoder of 2 on token embeddings of 64,
and after each a dense projection to 128. The speech encoder sees four frames at a time.
"""

from collections.abc import Sequence

import torch
from torch import nn

WIDTH = 128
EMBEDDING = 64
SPEECH_LAYERS, TEXT_LAYERS = 4, 2
STACKED = 4
"""Frames that the speech encoder sees at a time: it takes a quarter of the steps."""


class Encoder(nn.Module):
    """LSTM layers, dropout after each, and a projection of the mean over the last one's steps.

    The mean learns in a fraction of the updates that the last step alone needs.
    """

    def __init__(self, inputs: int, layers: int) -> None:
        super().__init__()
        sizes = [inputs, *[WIDTH] * (layers - 1)]
        self.layers = nn.ModuleList(nn.LSTM(size, WIDTH, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(0.0)
        self.projection = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(batch, steps, inputs) and (batch,), at least 1 -> (batch, WIDTH).

        What comes after a sequence's end changes nothing.
        """
        for layer in self.layers:
            x = self.dropout(layer(x)[0])
        present = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        mean = (x * present[..., None]).sum(1) / lengths[:, None]
        projected: torch.Tensor = self.projection(mean)
        return projected


class Contrastive(nn.Module):
    """Speech against the phrases that it is told of with `know`; those are no part of its state."""

    criterion = "triplet"
    tokens: torch.Tensor
    token_counts: torch.Tensor

    def __init__(self, inputs: int, tokens: int) -> None:
        super().__init__()
        self.speech = Encoder(STACKED * inputs, SPEECH_LAYERS)
        self.embedding = nn.Embedding(tokens, EMBEDDING)
        self.text = Encoder(EMBEDDING, TEXT_LAYERS)
        self.know([[0]])

    def know(self, phrases: Sequence[Sequence[int]]) -> None:
        """The token numbers of each phrase."""
        padded = nn.utils.rnn.pad_sequence([torch.tensor(p) for p in phrases], batch_first=True)
        counts = torch.tensor([len(phrase) for phrase in phrases])
        place = self.embedding.weight.device
        self.register_buffer("tokens", padded.to(place), persistent=False)
        self.register_buffer("token_counts", counts.to(place), persistent=False)

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared L2 distances, float32 (batch, phrases), of features (batch, frames, inputs).

        Features are zero after each utterance's end, as `features.batch` gives them. `lengths`
        (batch,) count frames, and come back as steps of the speech encoder.
        """
        frames = nn.functional.pad(features, (0, 0, 0, -features.shape[1] % STACKED))
        steps = torch.div(lengths + STACKED - 1, STACKED, rounding_mode="floor").clamp_min(1)
        speech = self.speech(frames.reshape(len(frames), -1, STACKED * frames.shape[2]), steps)
        phrases = self.text(self.embedding(self.tokens), self.token_counts)
        return (speech[:, None].float() - phrases.float()).square().sum(2), steps
