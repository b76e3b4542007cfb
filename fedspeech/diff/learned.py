"""Training on top of an anchored model: what every kind of learned diff shares.

Matrices are parametrized (`torch.nn.utils.parametrize`), so that any module with any criterion
learns a diff without knowing of it. What has fewer dimensions is trained as it is, and its
difference is sent whole. Make the optimizer afterwards, from `module.parameters()`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils import parametrize

from fedspeech.errors import DiffError
from fedspeech.tensors import Tensors

Place = tuple[torch.nn.Module, str]
"""A module and the name of its parameter."""


class LearnedDiff:
    """A module whose matrices are parametrized, each by what `make(name, weight)` gives.

    `names` are what to parametrize, by default all float32 parameters of two and more dimensions.
    Raises DiffError for a name that is no such parameter, and for one that two modules share.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        make: Callable[[str, torch.Tensor], torch.nn.Module],
        names: Sequence[str] | None = None,
    ) -> None:
        self.module = module
        self._places = {name: _place(module, name) for name in _chosen(module, names)}
        self.parts: dict[str, Any] = {}
        for name, (owner, attribute) in self._places.items():
            part = make(name, getattr(owner, attribute).detach())
            # A part's own tensor need not have the weight's shape.
            parametrize.register_parametrization(owner, attribute, part, unsafe=True)
            self.parts[name] = part
        owners = dict.fromkeys(owner for owner, _ in self._places.values())
        self._recurrent = [owner for owner in owners if isinstance(owner, torch.nn.RNNBase)]
        self._hooks = [
            hook
            for owner in self._recurrent
            for hook in (
                owner.register_forward_pre_hook(_gather_weights),
                owner.register_forward_hook(_forget_weights, always_call=True),
            )
        ]

    def trained(self, name: str) -> torch.nn.Parameter:
        """What the optimizer moves instead of a matrix."""
        owner, attribute = self._places[name]
        lists: Any = owner.parametrizations
        found: torch.nn.Parameter = lists[attribute].original
        return found

    def state(self) -> Tensors:
        """The model as it is now, under its own names: detached, on CPU, in their order."""
        plain = self.module.state_dict()
        found = {name: tensor for name, tensor in plain.items() if "parametrizations." not in name}
        for name, (owner, attribute) in self._places.items():
            found[name] = getattr(owner, attribute)
        return {name: t.detach().cpu().clone().contiguous() for name, t in sorted(found.items())}

    def remove(self) -> None:
        """Make the module a plain one again, with the weights that were learned."""
        for hook in self._hooks:
            hook.remove()
        for owner, attribute in self._places.values():
            parametrize.remove_parametrizations(owner, attribute)
        for owner in self._recurrent:
            _gather_weights(owner)


def _chosen(module: torch.nn.Module, names: Sequence[str] | None) -> list[str]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    matrices = [n for n, p in parameters.items() if p.dim() > 1 and p.dtype == torch.float32]
    chosen = matrices if names is None else list(names)
    for name in chosen:
        if name not in parameters:
            raise DiffError(f"the model has no parameter {name}")
        for other, parameter in parameters.items():
            if other != name and parameter is parameters[name]:
                raise DiffError(f"{name} and {other} are one parameter; a diff cannot be learned")
    return chosen


def _place(module: torch.nn.Module, name: str) -> Place:
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute


def _gather_weights(module: Any, *_: Any) -> None:
    """Recurrent layers keep a list of their weights, which a parametrization does not reach."""
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


def _forget_weights(module: Any, *_: Any) -> None:
    """Weights that were computed cannot be copied with their module."""
    module._flat_weights = []
