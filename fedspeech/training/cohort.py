"""Many speakers fine-tuned at once, as one stack of models.

Every speaker goes through a course of its own (`course.py`), as it would in `loop.py`: its order,
augmentation, learning rate, batch statistics, gradient norm. What the stack shares is the kernels
that it starts: on a GPU they are what small models wait for.
"""

from collections.abc import Iterator, Sequence

import torch

from fedspeech.accelerator import autocast, place
from fedspeech.models import Stack
from fedspeech.seeding import Draws
from fedspeech.tensors import Tensors
from fedspeech.training.course import Course, Update
from fedspeech.training.criteria import stacks
from fedspeech.training.criteria.stacks import Minibatches

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Member:
    """One speaker's way through the updates, and its losses."""

    def __init__(self, course: Course, stack: Stack, dtype: torch.dtype) -> None:
        self.losses: list[float] = []
        self._course, self._stack, self._dtype = course, stack, dtype
        self._drops = any(rate > 0 for _, rate in course.settings.dropout)
        self._total = 0.0
        self._updates = self._all_updates()

    def next(self) -> tuple[Update, list[torch.Tensor]] | None:
        """The next update with its dropout masks, None after the last one."""
        return next(self._updates, None)

    def _all_updates(self) -> Iterator[tuple[Update, list[torch.Tensor]]]:
        for number in range(self._course.settings.epochs):
            self._total = 0.0
            draws = self._course.draws(number)
            updates = self._course.updates(number)
            while (update := self._draw(draws, updates)) is not None:
                yield update
            self.losses.append(self._total / len(self._course.utterances))

    def _draw(
        self, draws: Draws, updates: Iterator[Update]
    ) -> tuple[Update, list[torch.Tensor]] | None:
        with draws.taken_up():
            if (update := next(updates, None)) is None:
                return None
            if not self._drops:
                return update, []
            batch, frames, _ = update.batch.features.shape
            size = batch, frames, max(map(len, update.references))
            masks = self._stack.dropout_masks(update.dropout, size, self._dtype)
            return update, masks

    def learned(self, loss: float) -> None:
        """Note the sum of losses of an update."""
        self._total += loss


class Cohort:
    """S models of one shape, each with its own course.

    `starts` are the models' tensors, in the order of `courses`. All courses have the same settings.
    """

    def __init__(
        self,
        stack: Stack,
        trained: Sequence[str],
        starts: Sequence[Tensors],
        courses: Sequence[Course],
    ) -> None:
        dtype = starts[0][trained[0]].dtype
        self.members = [Member(course, stack, dtype) for course in courses]
        self._criterion, self._settings = stacks.of(stack), courses[0].settings
        self._tensors = {
            name: torch.stack([start[name] for start in starts]).to(place()) for name in starts[0]
        }
        self._trained = list(trained)
        self._moments = {
            name: (torch.zeros_like(tensor), torch.zeros_like(tensor))
            for name, tensor in self._tensors.items()
            if name in self._trained
        }

    def run(self) -> list[Tensors]:
        """Train all to their ends; the models in the order of the courses."""
        models: list[Tensors] = [{} for _ in self.members]
        there = list(range(len(self.members)))
        step = 0
        while there:
            updates = {i: update for i in there if (update := self.members[i].next())}
            for row, i in enumerate(there):
                if i not in updates:
                    models[i] = {name: t[row].cpu().clone() for name, t in self._tensors.items()}
            if len(updates) < len(there):
                self._keep([row for row, i in enumerate(there) if i in updates])
            there = list(updates)
            if there:
                step += 1
                self._update([self.members[i] for i in there], list(updates.values()), step)
        return models

    def _keep(self, rows: list[int]) -> None:
        """Go on with some rows of the stack."""
        kept = torch.tensor(rows, dtype=torch.long, device=place())
        self._tensors = {name: tensor[kept] for name, tensor in self._tensors.items()}
        self._moments = {
            name: (first[kept], second[kept]) for name, (first, second) in self._moments.items()
        }

    def _update(
        self,
        members: Sequence[Member],
        updates: Sequence[tuple[Update, list[torch.Tensor]]],
        step: int,
    ) -> None:
        losses, weights, owners = self._losses(updates)
        self._step(torch.autograd.grad((losses * weights).sum(), self._parameters()), updates, step)
        sums = torch.zeros(len(members), dtype=losses.dtype, device=losses.device)
        sums = sums.index_add(0, owners, losses.detach())
        for member, loss in zip(members, sums.tolist(), strict=True):
            member.learned(loss)

    def _parameters(self) -> list[torch.Tensor]:
        return [self._tensors[name] for name in self._trained]

    def _losses(
        self, updates: Sequence[tuple[Update, list[torch.Tensor]]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of every utterance: its loss, its weight in its model's mean, and whose it is."""
        for parameter in self._parameters():
            parameter.requires_grad_(True)
        spoken = Minibatches(
            _stacked([update.batch.features for update, _ in updates]).to(place()),
            _stacked([update.batch.lengths for update, _ in updates]).to(place()),
            [reference for update, _ in updates for reference in update.references],
        )
        masks = [
            _stacked(layer).to(place()) for layer in zip(*(m for _, m in updates), strict=True)
        ]
        with autocast(self._settings.precision):
            losses = self._criterion(self._tensors, spoken, masks)
        weights = 1 / spoken.there.sum(1).to(losses.dtype)
        return losses, weights[spoken.owners], spoken.owners

    @torch.no_grad()
    def _step(
        self,
        gradients: Sequence[torch.Tensor],
        updates: Sequence[tuple[Update, list[torch.Tensor]]],
        step: int,
    ) -> None:
        """AdamW (Loshchilov & Hutter 2019) on gradients that are scaled down for each model."""
        rates = torch.tensor([update.learning_rate for update, _ in updates], dtype=torch.float64)
        scales = _scales(gradients, self._settings.gradient_norm)
        decay = self._settings.weight_decay
        for name, gradient in zip(self._trained, gradients, strict=True):
            parameter, (first, second) = (
                self._tensors[name].requires_grad_(False),
                self._moments[name],
            )
            rate = rates.to(parameter).view(-1, *[1] * (parameter.dim() - 1))
            gradient = gradient * scales.to(gradient).view_as(rate)
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            root = second.sqrt() / (1 - BETAS[1] ** step) ** 0.5 + EPSILON
            parameter.mul_(1 - rate * decay).sub_(rate / (1 - BETAS[0] ** step) * first / root)


def _scales(gradients: Sequence[torch.Tensor], most: float) -> torch.Tensor:
    """What brings each model's gradient down to the norm `most`; as PyTorch's clipping does."""
    squares = sum(gradient.flatten(1).square().sum(1) for gradient in gradients)
    assert isinstance(squares, torch.Tensor)
    return (most / (squares.sqrt() + 1e-6)).clamp_max(1.0)


def _stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor with a leading axis; zeros where one is smaller than another."""
    shape = [max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True)]
    stacked = tensors[0].new_zeros(len(tensors), *shape)
    for row, tensor in zip(stacked, tensors, strict=True):
        row[tuple(slice(size) for size in tensor.shape)] = tensor
    return stacked
