"""The loss of a transducer (Graves 2012, Sequence Transduction with Recurrent Neural Networks)."""

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
import torchaudio
from torch.utils.checkpoint import checkpoint

from fedspeech import accelerator
from fedspeech.models.rnnt import BLANK, RNNT

log = logging.getLogger("fedspeech")

SHARE = 1 / 8
"""Of the memory there is, for the lattice of a batch. Of all of it, not of what happens to be free:
another split gives other roundings."""
VALUE_BYTES = 4
"""The loss, and what it computes in, are float32."""


def of(
    model: torch.nn.Module,
) -> Callable[[torch.Tensor, torch.Tensor, Sequence[Sequence[int]]], torch.Tensor]:
    """The loss with the prediction network and the joint network of a model."""
    assert isinstance(model, RNNT)
    return partial(loss, model)


def loss(
    model: RNNT,
    encoded: torch.Tensor,
    lengths: torch.Tensor,
    references: Sequence[Sequence[int]],
) -> torch.Tensor:
    """-log p(reference | speech) in nats, float32 (batch,); heard is (batch, steps, joint).

    0 where a reference has more units than there are steps: such an utterance teaches nothing. A
    batch whose lattice (steps by units by vocabulary) is too large for the memory is split.
    """
    losses = encoded[:, :0].float().sum((1, 2))  # zeros that have a gradient
    counts = torch.tensor([len(reference) for reference in references], device=encoded.device)
    fits = ((counts <= lengths) & (lengths > 0)).nonzero()[:, 0]
    parts = _split(fits.tolist(), lengths.tolist(), counts.tolist(), _most_cells(model))
    if len(parts) > 1:
        _say_split(encoded.device.type)
    for part in parts:
        chosen = torch.tensor(part, device=encoded.device)
        lattice = partial(_loss, model, [references[i] for i in part], lengths[chosen])
        heard = encoded[chosen, : int(lengths[chosen].max())]
        # A part of a split batch keeps no lattice: it is computed again for the gradient.
        found = (
            checkpoint(lattice, heard, use_reentrant=False) if len(parts) > 1 else lattice(heard)
        )
        losses = losses.index_add(0, chosen, found)
    return losses


def _loss(
    model: RNNT, references: Sequence[Sequence[int]], lengths: torch.Tensor, encoded: torch.Tensor
) -> torch.Tensor:
    """Of utterances that fit, with the longest of them at full length."""
    rows = [torch.tensor(list(reference), dtype=torch.int32) for reference in references]
    targets = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=BLANK)
    targets = targets.to(encoded.device)
    begun = torch.nn.functional.pad(targets, (1, 0), value=BLANK)
    predicted, _ = model.predict(begun)
    found: torch.Tensor = torchaudio.functional.rnnt_loss(
        model.join(encoded[:, :, None], predicted[:, None]).float(),
        targets,
        lengths.int(),
        torch.tensor([len(row) for row in rows], dtype=torch.int32, device=encoded.device),
        blank=BLANK,
        reduction="none",
    )
    return found


def _split(
    chosen: Sequence[int], lengths: Sequence[int], counts: Sequence[int], most: int
) -> list[list[int]]:
    """Neighbours whose padded lattice has at most so many cells; or one that alone has more."""
    parts: list[list[int]] = []
    for i in chosen:
        part = [*parts[-1], i] if parts else [i]
        cells = max(lengths[j] for j in part) * (max(counts[j] for j in part) + 1)
        if parts and len(part) * cells <= most:
            parts[-1] = part
        else:
            parts.append([i])
    return parts


def _most_cells(model: RNNT) -> int:
    """How many cells of a lattice the memory holds: logits and two gradients, joint layer twice."""
    joint, units = model.output.in_features, model.output.out_features
    return int(SHARE * accelerator.memory_bytes() / (VALUE_BYTES * (3 * units + 2 * joint)))


@cache
def _say_split(kind: str) -> None:
    log.warning(
        "a minibatch's lattice takes more than an eighth of the memory (%s): it is computed in "
        "parts, which takes longer; a smaller batch_size would not",
        kind,
    )
