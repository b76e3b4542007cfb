"""Distillation over the lattice of a transducer, which replacing modules is compared with.

Panchapagesan et al., "Efficient Knowledge Distillation for RNN-Transducer Models", ICASSP 2021: in
every cell of the lattice the student's probabilities of the next unit of the reference, of the
blank and of all the rest together are drawn to the teacher's. Three values a cell take the place of
a vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from fedspeech.models.rnnt import BLANK, RNNT
from fedspeech.training.criteria import rnnt
from fedspeech.training.criteria.rnnt import Spelled

NONE = -torch.inf
"""The log-probability of what cannot be: after the last unit of a reference there is no next."""
SLICE = 16
"""Steps whose vocabulary is in memory at a time, besides the student's logits and gradient."""


def loss(
    student: RNNT,
    teacher: RNNT,
    alpha: float,
    heard: tuple[torch.Tensor, torch.Tensor],
    lengths: torch.Tensor,
    references: Sequence[Sequence[int]],
) -> torch.Tensor:
    """The student's loss and alpha times KL(teacher || student), in nats, float32 (batch,).

    `heard` is what the student and the teacher heard, each (batch, steps, joint). The divergence is
    summed over the cells of an utterance's lattice. Both are 0 where there is no step; a batch
    whose lattice is too large for the memory is split.
    """
    predicted, _ = student.predict(Spelled.of(references, heard[0].device).begun)
    lattice = partial(_loss, student, teacher, alpha, references, predicted)
    most = rnnt.most_cells(student, 4)
    return rnnt.in_parts(lattice, most, heard, lengths, references)


def _loss(
    student: RNNT,
    teacher: RNNT,
    alpha: float,
    references: Sequence[Sequence[int]],
    predicted: torch.Tensor,
    part: Sequence[int],
    lengths: torch.Tensor,
    encoded: torch.Tensor,
    taught: torch.Tensor,
) -> torch.Tensor:
    spelled, read = rnnt.part_of(references, predicted, part)
    logits = student.join(encoded[:, :, None], read[:, None]).float()
    following = _following(spelled)
    apart = divergence(logits, following, _wanted(teacher, taught, spelled, following))
    there = _there(lengths, spelled, apart)
    return rnnt.of_logits(logits, lengths, spelled) + alpha * (apart * there).sum((1, 2))


@torch.no_grad()
def _wanted(
    teacher: RNNT, taught: torch.Tensor, spelled: Spelled, following: torch.Tensor
) -> torch.Tensor:
    """What the teacher says of each cell, collapsed; its vocabulary is never there as a whole."""
    read, _ = teacher.predict(spelled.begun)
    parts = [
        collapse(teacher.join(part[:, :, None], read[:, None]), following)
        for part in torch.split(taught, SLICE, 1)
    ]
    return torch.cat(parts, 1)


def _following(spelled: Spelled) -> torch.Tensor:
    """The unit after each of (batch, units + 1); the blank after the last one, which has none."""
    return torch.nn.functional.pad(spelled.targets, (0, 1), value=BLANK).long()


def _there(lengths: torch.Tensor, spelled: Spelled, cells: torch.Tensor) -> torch.Tensor:
    """Which cells are an utterance's own, and not padding."""
    _, steps, units = cells.shape
    in_time = torch.arange(steps, device=cells.device) < lengths[:, None]
    in_text = torch.arange(units, device=cells.device) <= spelled.counts[:, None]
    return in_time[:, :, None] & in_text[:, None]


def collapse(logits: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (batch, steps, units, 3) of the following unit, the blank and the rest.

    Logits are (batch, steps, units, vocabulary), `following` (batch, units) is int64, the blank
    where no unit follows: then only blank and rest can be.
    """
    place = following[:, None, :, None].expand(*logits.shape[:3], 1)
    unit = logits.gather(3, place).masked_fill(place == BLANK, NONE)
    rest = logits.scatter(3, place, NONE)
    rest[..., BLANK] = NONE
    parts = [unit, logits[..., BLANK, None], rest.logsumexp(3, keepdim=True)]
    return torch.cat(parts, 3) - logits.logsumexp(3, keepdim=True)


def divergence(logits: torch.Tensor, following: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """KL(wanted || collapsed logits) in nats, (batch, steps, units); shapes as in `collapse`."""
    apply: Callable[..., torch.Tensor] = _Divergence.apply
    return apply(logits, following, wanted)


class _Divergence(torch.autograd.Function):
    """The divergence with its gradient, computed a few steps at a time.

    With p the softmax of the logits z, w what is wanted and R the units of the rest,
    d KL / d z_k = p_k - w_c for the unit and the blank, each a class c of its own, and
    p_k - w_R * p_k / sum_R p for all others: nothing of the vocabulary's size is kept for it.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, following: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        parts = [collapse(part, following) for part in torch.split(logits, SLICE, 1)]
        found = torch.cat(parts, 1)
        ctx.save_for_backward(logits, following, wanted, found)
        terms = wanted.exp() * (wanted - found)
        return terms.masked_fill(wanted == NONE, 0.0).sum(3)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        logits, following, wanted, found = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        whole = (gradient, logits, wanted, found, gradients[0])
        for parts in zip(*(torch.split(one, SLICE, 1) for one in whole), strict=True):
            _slope(following, *parts)
        return gradient, None, None


def _slope(
    following: torch.Tensor,
    out: torch.Tensor,
    logits: torch.Tensor,
    wanted: torch.Tensor,
    found: torch.Tensor,
    gradient: torch.Tensor,
) -> None:
    """Fill `out` with the gradient of some steps."""
    total = logits.logsumexp(3, keepdim=True)
    torch.sub(logits, total, out=out).exp_()
    out -= (logits - total + (wanted - found)[..., 2:]).exp()
    exact = found.exp() - wanted.exp()
    place = following[:, None, :, None].expand(*logits.shape[:3], 1)
    out.scatter_(3, place, exact[..., :1])
    out[..., BLANK] = exact[..., 1]
    out *= gradient[..., None]
