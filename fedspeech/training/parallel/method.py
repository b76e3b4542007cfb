"""What a method of talking to each other is: where it comes in while a learner learns."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fedspeech.config.data_parallel import ParallelSettings
from fedspeech.training.parallel.group import Group
from fedspeech.training.parallel.share import Part

if TYPE_CHECKING:
    from fedspeech.training.parallel.loop import ParallelLoop


class Method:
    """How learners train one model together.

    Around each gradient the loop calls `begin` and `exchange`; at the end `finish`, and `close`
    whatever happened.
    """

    restarts: ClassVar[bool] = False
    """Whether all learners start again from the last checkpoint where one died; else the others go
    on."""
    alike: ClassVar[bool] = False
    """Whether all learners have the same model after each step, so that one of them keeps it."""
    servers: ClassVar[int] = 0
    """Processes beside the learners; they have the last ranks."""

    def __init__(self, loop: "ParallelLoop", group: Group, settings: ParallelSettings) -> None:
        self.loop, self.group, self.settings = loop, group, settings
        self._reached = 0

    @classmethod
    def able(cls, living: Sequence[int], settings: ParallelSettings) -> list[int]:
        """Which of those who live can go on without the others; none: all have to be there."""
        return list(living)

    @classmethod
    def keepers(cls, learner: int, settings: ParallelSettings) -> Sequence[int]:
        """Whose checkpoint, the first that is there, this learner goes on from as from its own."""
        return [learner]

    def parts(self, first: int) -> Iterator[int]:
        """The numbers of this learner's parts from the first one on, for all who are there alike.

        Dealt out in turns; where there are too few left for all, nobody takes them.
        """
        size, left = self.group.size, self.loop.share.parts - first
        self._reached = first
        for _ in range(left // size):
            yield self._reached + self.group.rank
            self._reached += size

    @property
    def reached(self) -> int:
        """The first part that is left for a group that goes on after this one."""
        return self._reached

    @property
    def serves(self) -> bool:
        """Whether this process learns no parts itself; `parts` tells it then how far others are."""
        return False

    def weight(self, part: Part) -> float:
        """What the summed loss of a part is multiplied by."""
        return 1 / len(part.chosen)

    def begin(self, part: Part) -> None:
        """The gradient of a part is computed next."""

    def exchange(self, part: Part) -> None:
        """The gradient is there: the others get it, or the model, and the learner its step."""
        raise NotImplementedError

    def finish(self) -> None:
        """All parts are done. Nobody leaves while another one still waits for it."""
        self.group.wait_for_all("finished")

    def close(self) -> None:
        """Let go of the model; the group may be gone."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the model and the optimizer."""
        return {}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""


class FirstCome(Method):
    """Each part is learned by whoever comes first, so that a slow learner holds up nobody."""

    _first = 0

    def parts(self, first: int) -> Iterator[int]:
        """Parts that nobody else has taken."""
        self._first = first
        while (number := self.claim()) is not None:
            yield number

    def claim(self, together: int = 1) -> int | None:
        """The first of so many parts, which are this learner's now; None where none are left."""
        number = self._first + self.group.claim(together)
        return number if number < self.loop.share.parts else None

    @property
    def reached(self) -> int:
        """What was underway when the group was lost is not learned again."""
        return min(self._first + self.group.claim(0), self.loop.share.parts)


def flat(module: torch.nn.Module) -> torch.Tensor:
    """All parameters in one vector (parameters,), of which they are views from now on."""
    parameters = list(module.parameters())
    vector = torch.nn.utils.parameters_to_vector(parameters).detach().clone()
    torch.nn.utils.vector_to_parameters(vector, parameters)
    return vector
