"""The model that learns while modules are replaced: partly the student, partly its teacher."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from fedspeech.models.rnnt import RNNT, Network
from fedspeech.training.distill.modules import OWN, Module


class Hybrid(RNNT):
    """A student of which the teacher's modules take some places; it hears and learns as any RNN-T.

    Embedding, joint network and output layer are the student's. Until `choose` is called, so is
    everything else.
    """

    def __init__(
        self, teacher: RNNT, student: RNNT, modules: Mapping[Network, Sequence[Module]]
    ) -> None:
        nn.Module.__init__(self)  # it has no layers but those of the two
        self.teacher, self.student = teacher, student
        self.shape, self.subsampling = student.shape, student.subsampling
        self.dropout = student.dropout
        for name in OWN:
            setattr(self, name, getattr(student, name))
        self._modules_of = modules
        self._ours = {network: [True] * len(some) for network, some in modules.items()}

    def choose(self, rate: float, draw: np.random.Generator) -> None:
        """Each module is the student's with this probability, independently of the others."""
        for network, some in self._modules_of.items():
            self._ours[network] = [bool(value < rate) for value in draw.random(len(some))]

    def layers(self, network: Network) -> list[nn.Module]:
        """The layers of the modules that are chosen."""
        chosen = zip(self._modules_of[network], self._ours[network], strict=True)
        return [
            layer
            for module, ours in chosen
            for layer in (module.student if ours else module.teacher)
        ]


def inherit(teacher: RNNT, student: RNNT) -> None:
    """Give the student a copy of the teacher's embedding, joint network and output layer."""
    for name in OWN:
        getattr(student, name).load_state_dict(getattr(teacher, name).state_dict())
