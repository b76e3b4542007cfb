"""The loss of a transducer (Graves 2012, Sequence Transduction with Recurrent Neural Networks)."""

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import torch
import torchaudio
from torch.utils.checkpoint import checkpoint

from fedspeech import accelerator
from fedspeech.errors import CorpusError
from fedspeech.models.rnnt import BLANK, RNNT

log = logging.getLogger("fedspeech")

VALUE_BYTES = 4
"""The loss, and what it computes in, are float32."""
MOST_LOGITS = 2**31 - 1
"""Of a batch's lattice: torchaudio counts them with 32 bits."""


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

    A step may spell any number of units, so a reference may have more of them than there are steps;
    0 where there is no step. A batch whose lattice (steps by units by vocabulary) is too large for
    the memory is split.
    """
    predicted, _ = model.predict(Spelled.of(references, encoded.device).begun)
    lattice = partial(_loss, model, references, predicted)
    return in_parts(lattice, most_cells(model, 3), [encoded], lengths, references)


def in_parts(
    lattice: Callable[..., torch.Tensor],
    most: int,
    heard: Sequence[torch.Tensor],
    lengths: torch.Tensor,
    references: Sequence[Sequence[int]],
) -> torch.Tensor:
    """Losses (batch,) of a lattice, in parts of at most `most` cells.

    `heard` are one or more tensors (batch, steps, joint); `lattice` takes the numbers and the
    lengths of some utterances, with what was heard of them, the longest at full length. The loss is
    0 where there is no step.
    """
    losses = heard[0][:, :0].float().sum((1, 2))  # zeros that have a gradient
    counts = torch.tensor([len(reference) for reference in references], device=losses.device)
    heard_at_all = (lengths > 0).nonzero()[:, 0]
    sizes = lengths.tolist(), counts.tolist()
    parts = _split(heard_at_all.tolist(), *sizes, most)
    if len(parts) > 1:
        _say_split(losses.device.type)
    if any(_cells(part, *sizes) > most for part in parts):
        _say_too_large(losses.device.type)
    for part in parts:
        chosen = torch.tensor(part, device=losses.device)
        own = partial(lattice, part, lengths[chosen])
        cut = [one[chosen, : int(lengths[chosen].max())] for one in heard]
        # A part of a split batch keeps no lattice: it is computed again for the gradient.
        found = checkpoint(own, *cut, use_reentrant=False) if len(parts) > 1 else own(*cut)
        losses = losses.index_add(0, chosen, found)
    return losses


def most_cells(model: RNNT, copies: int) -> int:
    """How many cells of a lattice there may be at once.

    In memory a cell is so many times all logits or their gradients, and the joint layer twice.
    """
    joint, units = model.output.in_features, model.output.out_features
    each = VALUE_BYTES * (copies * units + 2 * joint)
    return min(int(accelerator.lattice_bytes() / each), MOST_LOGITS // units)


class Spelled(NamedTuple):
    """References of a batch, padded."""

    targets: torch.Tensor
    """int32 (batch, most units)"""
    counts: torch.Tensor
    """int32 (batch,)"""

    @classmethod
    def of(cls, references: Sequence[Sequence[int]], place: torch.device) -> "Spelled":
        """Some references on a device."""
        rows = [torch.tensor(list(reference), dtype=torch.int32) for reference in references]
        targets = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=BLANK)
        counts = torch.tensor([len(row) for row in rows], dtype=torch.int32)
        return cls(targets.to(place), counts.to(place))

    @property
    def begun(self) -> torch.Tensor:
        """What the prediction network reads: a text begins with the blank."""
        return torch.nn.functional.pad(self.targets, (1, 0), value=BLANK)


def part_of(
    references: Sequence[Sequence[int]], predicted: torch.Tensor, part: Sequence[int]
) -> tuple[Spelled, torch.Tensor]:
    """Some utterances' references, and of what was read (batch, units, joint) their own.

    All is read before a batch is split: dropout is then the same, whatever the parts.
    """
    spelled = Spelled.of([references[i] for i in part], predicted.device)
    chosen = torch.tensor(part, device=predicted.device)
    return spelled, predicted[chosen, : spelled.begun.shape[1]]


def _loss(
    model: RNNT,
    references: Sequence[Sequence[int]],
    predicted: torch.Tensor,
    part: Sequence[int],
    lengths: torch.Tensor,
    encoded: torch.Tensor,
) -> torch.Tensor:
    spelled, read = part_of(references, predicted, part)
    return of_logits(model.join(encoded[:, :, None], read[:, None]), lengths, spelled)


def of_logits(logits: torch.Tensor, lengths: torch.Tensor, spelled: Spelled) -> torch.Tensor:
    """Losses (batch,) of logits (batch, steps, units + 1, vocabulary); the longest fills them.

    Raises CorpusError where one utterance has more of them than torchaudio can count.
    """
    if logits.numel() > MOST_LOGITS:
        _, steps, units, vocabulary = logits.shape
        raise CorpusError(
            f"an utterance of {steps} steps and {units - 1} units has a lattice of "
            f"{steps} x {units} x {vocabulary} values, and torchaudio's loss counts no more than "
            f"{MOST_LOGITS:,}: leave out the longest utterances"
        )
    return (_of_gpu if logits.is_cuda else _summed)(logits.float(), lengths, spelled)


def _summed(logits: torch.Tensor, lengths: torch.Tensor, spelled: Spelled) -> torch.Tensor:
    """Over all alignments."""
    found: torch.Tensor = torchaudio.functional.rnnt_loss(
        logits, spelled.targets, lengths.int(), spelled.counts, blank=BLANK, reduction="none"
    )
    return found


def _of_gpu(logits: torch.Tensor, lengths: torch.Tensor, spelled: Spelled) -> torch.Tensor:
    """The same: torchaudio's kernel for GPUs leaves the losses of what is aligned in one way alone,
    of one step or without a unit, as their memory was.
    """
    one = (lengths == 1) | (spelled.counts == 0)
    losses = logits.new_zeros(len(lengths))
    for chosen, loss in ((one, _of_one_way), (~one, _summed)):
        if (rows := chosen.nonzero()[:, 0]).numel():
            own, counts = lengths[rows], spelled.counts[rows]
            steps, units = int(own.max()), int(counts.max())
            part = Spelled(spelled.targets[rows, :units], counts)
            losses = losses.index_add(0, rows, loss(logits[rows, :steps, : units + 1], own, part))
    return losses


def _of_one_way(logits: torch.Tensor, lengths: torch.Tensor, spelled: Spelled) -> torch.Tensor:
    """Of all units in the first step, and then a blank in each step."""
    likely = logits.log_softmax(3)
    _, steps, units, _ = logits.shape
    there = torch.arange(units - 1, device=logits.device) < spelled.counts[:, None]
    spoken = likely[:, 0, :-1].gather(2, spelled.targets[..., None].long())[..., 0]
    in_time = torch.arange(steps, device=logits.device) < lengths[:, None]
    place = spelled.counts.long()[:, None, None].expand(-1, steps, 1)
    blanks = likely[..., BLANK].gather(2, place)[..., 0]
    return -(spoken * there).sum(1) - (blanks * in_time).sum(1)


def _split(
    chosen: Sequence[int], lengths: Sequence[int], counts: Sequence[int], most: int
) -> list[list[int]]:
    """Neighbours whose padded lattice has at most so many cells; or one that alone has more."""
    parts: list[list[int]] = []
    for i in chosen:
        part = [*parts[-1], i] if parts else [i]
        if parts and _cells(part, lengths, counts) <= most:
            parts[-1] = part
        else:
            parts.append([i])
    return parts


def _cells(part: Sequence[int], lengths: Sequence[int], counts: Sequence[int]) -> int:
    """Of some utterances' lattices, padded."""
    return len(part) * max(lengths[j] for j in part) * (max(counts[j] for j in part) + 1)


@cache
def _say_too_large(kind: str) -> None:
    log.warning(
        "one utterance's lattice alone takes more than 1/%d of the memory (%s), and an utterance "
        "is not split: where the memory runs out, leave out the longest ones",
        accelerator.MOST_AT_ONCE,
        kind,
    )


@cache
def _say_split(kind: str) -> None:
    log.warning(
        "a minibatch's lattice takes more than 1/%d of the memory (%s), or has more values than "
        "torchaudio counts: it is computed in parts, which takes longer; a smaller batch_size "
        "would not",
        accelerator.MOST_AT_ONCE,
        kind,
    )
