"""What an experiment on diffs knows of what its models are for."""

from abc import ABC, abstractmethod
from typing import Any

import torch

from fedspeech.config.training import Optimization
from fedspeech.evaluation import Counts
from fedspeech.training.course import Course


class Task(ABC):
    """Generations of one model: its shape, its training speech and its errors in each.

    `metric` says what `errors` count.
    """

    metric: str
    skipped: int = 0
    """Training utterances with too many units for their length."""

    @property
    @abstractmethod
    def generations(self) -> list[dict[str, Any]]:
        """For each generation its `label`, and what the results tell of it besides."""

    @abstractmethod
    def model(self, generation: int) -> torch.nn.Module:
        """A model of this generation's shape, freshly drawn (PyTorch's generator).

        From one generation to the next, tensors keep their shape or get more rows.
        """

    @abstractmethod
    def course(self, generation: int, settings: Optimization, seed: int, purpose: str) -> Course:
        """This generation's training speech D_t; draws are named by seed and purpose."""

    @abstractmethod
    def errors(self, model: torch.nn.Module, known: int, generation: int) -> dict[str, Counts]:
        """By speaker, on the test of `generation`, of a model that is of generation `known`."""
