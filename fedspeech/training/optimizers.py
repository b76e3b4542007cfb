"""What turns gradients into steps, by name."""

from collections.abc import Callable, Sequence

import torch

Optimizers = Callable[[Sequence[torch.nn.Parameter], float], torch.optim.Optimizer]
"""(parameters, weight decay) -> optimizer; the loop sets its learning rate before every step"""


def adamw(parameters: Sequence[torch.nn.Parameter], decay: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(parameters, lr=0.0, weight_decay=decay, fused=True)


def lamb(parameters: Sequence[torch.nn.Parameter], decay: float) -> torch.optim.Optimizer:
    """LAMB (You et al. 2020, Large Batch Optimization for Deep Learning, algorithm 2).

    Without the correction of the moments' bias, as in the paper's third version; a weight's norm
    counts as at most 10.
    """
    from pytorch_optimizer import Lamb  # two seconds that nobody else should wait

    # With `adam_debias` the library leaves the step as long as the rate says; not decoupled, decay
    # enters the step before its length is set.
    found: torch.optim.Optimizer = Lamb(
        parameters, lr=0.0, weight_decay=decay, weight_decouple=False, adam_debias=True
    )
    return found


OPTIMIZERS: dict[str, Optimizers] = {"adamw": adamw, "lamb": lamb}
