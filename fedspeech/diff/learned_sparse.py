"""The sparse diff, learned: an additive mask for each matrix, pruned by magnitude as it is trained.

Macoskey, Strimel, Rastrow, "Learning a Neural Diff for Speech Models", 2021 (arXiv 2108.01561);
the schedule is that of Zhu and Gupta, "To prune, or not to prune", 2018 (arXiv 1710.01878), eq. 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedspeech.diff.learned import LearnedDiff
from fedspeech.errors import DiffError


@dataclass(frozen=True)
class CubicSchedule:
    """Sparsity grows from 0 at step `begin` to `sparsity` at step `end`, ever more slowly.

    s_r = s_f * (1 - (1 - (r - r0) / (rf - r0))**3). Raises DiffError for what cannot be.
    """

    sparsity: float
    begin: int
    end: int

    def __post_init__(self) -> None:
        if not (0 <= self.sparsity < 1 and self.begin < self.end):
            raise DiffError(
                f"pruning: expected a sparsity of at least 0 and below 1, and begin < end; found "
                f"{self.sparsity}, {self.begin} and {self.end}"
            )

    def at(self, step: int) -> float:
        """The sparsity at a step: a fraction of each matrix."""
        done = min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.sparsity * (1 - (1 - done) ** 3)


class SparseMask(torch.nn.Module):
    """W = base + change where `kept`, else base; `change` is trained and starts at W - base.

    Without an anchor the base is zero: then it is the weight itself that is pruned.
    """

    base: torch.Tensor
    kept: torch.Tensor

    def __init__(self, weight: torch.Tensor, anchored: bool = True) -> None:
        super().__init__()
        self.register_buffer("base", weight.clone() if anchored else weight.new_zeros(()))
        self.register_buffer("kept", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, change: torch.Tensor) -> torch.Tensor:
        """The weight, in its own shape."""
        return self.base + change * self.kept

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The change that gives this weight."""
        return weight - self.base

    @torch.no_grad()
    def prune(self, change: torch.Tensor, sparsity: float) -> None:
        """Keep the largest changes of those that were kept so far; the rest is zero from now on."""
        count = change.numel() - round(sparsity * change.numel())
        sizes = torch.where(self.kept, change.abs(), -1.0).flatten()
        # Stable, so that it is always the same of several that are as large.
        largest = sizes.argsort(descending=True, stable=True)[:count]
        kept = torch.zeros_like(self.kept).flatten()
        kept[largest] = True
        self.kept &= kept.view_as(self.kept)
        change *= self.kept


class SparseDiff(LearnedDiff):
    """Learn a sparse diff on top of the module as it is now, or prune the module itself.

    Call `prune` after the optimizer's step, as often as pruning is wanted.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        schedule: CubicSchedule,
        names: Sequence[str] | None = None,
        anchored: bool = True,
    ) -> None:
        self.schedule = schedule
        super().__init__(module, lambda _, weight: SparseMask(weight, anchored), names)

    def prune(self, step: int) -> None:
        """Prune each matrix to the sparsity that the schedule has at this step."""
        sparsity = self.schedule.at(step)
        for name, mask in self.parts.items():
            mask.prune(self.trained(name), sparsity)
