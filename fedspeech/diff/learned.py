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
    A parameter that several modules share is learned once, under the first name that is chosen;
    `tied` leads from its other names to that one. `state` has it under all of them, and a diff
    sends it as often: leave the names in `tied` out of both models to send it once. Raises
    DiffError for a name that is no float32 parameter, for a module that cannot be parametrized or
    whose state is not of tensors, and where there is nothing to parametrize.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        make: Callable[[str, torch.Tensor], torch.nn.Module],
        names: Sequence[str] | None = None,
    ) -> None:
        check_learnable(module)
        self.module = module
        chosen = _chosen(module, names)
        self.tied = {other: name for name, others in chosen.items() for other in others}
        self._ours = tuple(map(_prefix, [*chosen, *self.tied]))
        self._places = {
            name: list(dict.fromkeys(_place(module, one) for one in (name, *others)))
            for name, others in chosen.items()
        }
        self.parts: dict[str, Any] = {}
        for name, places in self._places.items():
            owner, attribute = places[0]
            weight = getattr(owner, attribute).detach()
            self.parts[name] = make(name, weight)
            _parametrize(places, self.parts[name], weight)
        owners = dict.fromkeys(owner for places in self._places.values() for owner, _ in places)
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
        return _trained(self._places[name][0])

    def state(self) -> Tensors:
        """The model as it is now, under its own names: detached, on CPU, in their order."""
        plain = self.module.state_dict()
        found = {name: t for name, t in plain.items() if not name.startswith(self._ours)}
        found |= {name: getattr(*places[0]) for name, places in self._places.items()}
        found |= {other: found[name] for other, name in self.tied.items()}
        return {name: t.detach().cpu().clone().contiguous() for name, t in sorted(found.items())}

    def remove(self) -> None:
        """Make the module a plain one again, with the weights that were learned."""
        for hook in self._hooks:
            hook.remove()
        for first, *others in self._places.values():
            parametrize.remove_parametrizations(*first)
            for place in others:
                # What they share is the weight by now.
                parametrize.remove_parametrizations(*place, leave_parametrized=False)
        for owner in self._recurrent:
            _gather_weights(owner)


def _chosen(module: torch.nn.Module, names: Sequence[str] | None) -> dict[str, list[str]]:
    """What is to be parametrized, with the other names of each."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    if names is None:
        names = [n for n, p in parameters.items() if p.dim() > 1 and p.dtype == torch.float32]
    if not names:
        found = sorted({str(p.dtype).removeprefix("torch.") for p in parameters.values()})
        raise DiffError(
            "nothing to learn a diff of: expected a float32 parameter of two or more dimensions, "
            f"found {len(parameters)} parameters in {' and '.join(found) or 'no dtype'}"
        )
    chosen: dict[str, list[str]] = {}
    for name in names:
        if name not in parameters:
            raise DiffError(f"the model has no parameter {name}")
        if (dtype := parameters[name].dtype) != torch.float32:
            raise DiffError(f"parameter {name}: expected torch.float32, found {dtype}")
        same = [other for other, p in parameters.items() if p is parameters[name]]
        if chosen.keys().isdisjoint(same):
            chosen[name] = [other for other in same if other != name]
    return chosen


def check_learnable(module: torch.nn.Module) -> None:
    """Raise DiffError for a module that cannot be parametrized, or has more than tensors."""
    if isinstance(module, torch.jit.ScriptModule):
        raise DiffError("a TorchScript module cannot be parametrized; learn that of the module")
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            found = type(value).__name__
            raise DiffError(f"{name}: expected a tensor in the module's state, found {found}")
        if torch.nn.parameter.is_lazy(value):
            raise DiffError(f"{name} has no shape yet; let the module compute something first")


def _prefix(name: str) -> str:
    """Of what a parametrized parameter adds to the module's state."""
    path, dot, attribute = name.rpartition(".")
    return f"{path}{dot}parametrizations.{attribute}."


def _parametrize(places: Sequence[Place], part: torch.nn.Module, weight: torch.Tensor) -> None:
    """Parametrize all places of one weight, so that they share what is trained."""
    for owner, attribute in places:
        if (owner, attribute) != places[0]:
            # By now the shared parameter is what is trained.
            setattr(owner, attribute, torch.nn.Parameter(weight))
        # A part's own tensor need not have the weight's shape.
        parametrize.register_parametrization(owner, attribute, part, unsafe=True)
    for place in places[1:]:
        _list(place).original = _trained(places[0])


def _list(place: Place) -> Any:
    owner, attribute = place
    lists: Any = owner.parametrizations
    return lists[attribute]


def _trained(place: Place) -> torch.nn.Parameter:
    found: torch.nn.Parameter = _list(place).original
    return found


def _place(module: torch.nn.Module, name: str) -> Place:
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute


def _gather_weights(module: Any, *_: Any) -> None:
    """Recurrent layers keep a list of their weights, which a parametrization does not reach."""
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


def _forget_weights(module: Any, *_: Any) -> None:
    """Weights that were computed cannot be copied with their module."""
    module._flat_weights = []
