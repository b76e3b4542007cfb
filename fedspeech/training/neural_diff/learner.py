"""One model of one generation: trained, encoded, and what comes out of its bytes."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fedspeech import seeding
from fedspeech.config.neural_diff import NeuralDiffConfig
from fedspeech.config.training import Optimization
from fedspeech.diff import budget, values, wire
from fedspeech.diff.apply import apply
from fedspeech.diff.learned_hash import HashDiff
from fedspeech.diff.learned_sparse import CubicSchedule, SparseDiff
from fedspeech.diff.methods import Sparse
from fedspeech.errors import DivergedError, RunError
from fedspeech.tensors import Tensors, size, state
from fedspeech.training.loop import Loop
from fedspeech.training.neural_diff.cells import Cell
from fedspeech.training.neural_diff.task import Task
from fedspeech.training.pool import epoch_over

PRUNINGS = 32
"""How often a matrix is pruned: sorting it after every update would take longer than the update."""


@dataclass(frozen=True)
class Outcome:
    """A model, the bytes it is sent as (None: whole), and what these hold."""

    model: Tensors
    data: bytes | None
    full: int
    """Bytes of the whole model."""
    sent: float
    """The share of the matrices' values that are sent, as the paper counts; a cell is one value."""
    loss: float
    """The mean in the last epoch, per utterance."""
    additive: tuple[str, ...] = ()
    """Matrices whose hashed diff fell back to the additive form."""


def learn(task: Task, settings: NeuralDiffConfig, cell: Cell, base: Tensors | None) -> Outcome:
    """Train a cell on top of its base. Raises DivergedError where the training diverges."""
    module = _module(task, cell, base)
    if cell.model == "BL":
        loss = _train(_loop(task, settings.training, cell, module), cell)
        model = state(module)
        return Outcome(model, None, size(model), 1.0, loss)
    measured = {name for name, _ in module.named_buffers()}
    before = base or {}
    make = _sparse if cell.method == "sparse" else _hashed
    learned, loop = make(task, settings, cell, module, before)
    loss = _train(loop, cell)
    new = learned.state()
    method, fallen_back = (
        (learned.method(), learned.fallen_back) if isinstance(learned, HashDiff) else (Sparse, ())
    )
    most = int(size(new) / _ratio(cell))
    kind = None if settings.values == "auto" else values.kind(settings.values)
    # A variance that falls to almost nothing is lost in the rounding of its change.
    data = budget.make(before, new, most, method, kind, whole=measured).data
    return Outcome(apply(before, data), data, size(new), _sent(data, new), loss, fallen_back)


def _ratio(cell: Cell) -> float:
    assert cell.ratio is not None
    return cell.ratio


def _module(task: Task, cell: Cell, base: Tensors | None) -> torch.nn.Module:
    """Freshly drawn, alike for all cells of a seed, or the base with its new rows drawn."""
    with seeding.scoped(cell.seed, 0, "", "neural diff, initialization"):
        module = task.model(cell.generation)
    tensors = module.state_dict()
    for name, before in (base or {}).items():
        known = tensors[name][: len(before)] if before.dim() else tensors[name]
        known.copy_(before)
    return module


def _names(module: torch.nn.Module, base: Tensors) -> list[str]:
    """What is pruned or hashed: matrices, but not those that have grown, which are sent whole."""
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.dim() > 1 and (name not in base or base[name].shape == parameter.shape)
    ]


def _sparse(
    task: Task, settings: NeuralDiffConfig, cell: Cell, module: torch.nn.Module, base: Tensors
) -> tuple[SparseDiff, Loop]:
    schedule = pruning(task, settings, cell)
    learned = SparseDiff(module, schedule, _names(module, base), anchored=bool(base))
    loop = _loop(task, _sparsely(settings, cell), cell, module)
    loop.optimizer.register_step_post_hook(_pruning(learned))
    return learned, loop


def _sparsely(settings: NeuralDiffConfig, cell: Cell) -> Optimization:
    """A diff is trained as the settings say of sparse ones, and BLC as any whole model."""
    return settings.sparse if cell.model == "diff" else settings.training


def pruning(task: Task, settings: NeuralDiffConfig, cell: Cell) -> CubicSchedule:
    """When a sparse cell is pruned. Raises RunError where its training ends before that does."""
    training = _sparsely(settings, cell)
    course = task.course(cell.generation, training, cell.seed, cell.purpose)
    updates = course.updates_per_epoch * training.epochs
    name = "prune" if cell.model == "diff" else "compressed_prune"
    begin, end = (
        moment if isinstance(moment, int) else round(moment * updates)
        for moment in getattr(settings.sparse, name)
    )
    if end > updates:
        raise RunError(
            f"sparse.{name} ends with update {end:,}, and {cell.name} has {updates:,}; set more "
            f"epochs, or shares of the updates"
        )
    return CubicSchedule(1 - 1 / _ratio(cell), begin, max(end, begin + 1))


def _pruning(learned: SparseDiff) -> Callable[..., None]:
    """What prunes after an update where it is due, at the end of the schedule for the last time."""
    begin, end = learned.schedule.begin, learned.schedule.end
    every = math.ceil((end - begin) / PRUNINGS)
    steps = itertools.count(1)

    def after(*_: Any) -> None:
        step = next(steps)
        if begin <= step <= end and (end - step) % every == 0:
            learned.prune(step)

    return after


def _hashed(
    task: Task, settings: NeuralDiffConfig, cell: Cell, module: torch.nn.Module, base: Tensors
) -> tuple[HashDiff, Loop]:
    hashing = settings.hash
    other = {"hold": hashing.hold, "learning_rate": hashing.compressed_learning_rate}
    training = hashing if base else settings.training.model_copy(update=other)
    names, share = _names(module, base), 1 / _ratio(cell)
    # What BLC begins with is the same in all generations; its hash functions are not.
    seed = None if base else seeding.key(cell.seed, cell.generation, "", "BLC, hash functions")
    learned = HashDiff(module, share, hashing.hashes, seed, names=names, anchored=bool(base))
    return learned, _loop(task, training, cell, module)


def _loop(task: Task, training: Optimization, cell: Cell, module: torch.nn.Module) -> Loop:
    course = task.course(cell.generation, training, cell.seed, cell.purpose)
    return Loop(module, course)


def _train(loop: Loop, cell: Cell) -> float:
    """Train to the end; the last epoch's loss."""
    loss = math.nan
    for epoch in range(loop.settings.epochs):
        loss = loop.epoch(epoch)
        if loop.has_diverged(loss):
            raise DivergedError(
                f"{cell.name}: training diverged in epoch {epoch + 1} (loss {loss:.3g}); its "
                f"learning_rate = {loop.settings.learning_rate:g} may be too large"
            )
        epoch_over(cell, epoch, loop.settings.epochs, loss)
    return loss


def _sent(data: bytes, model: Tensors) -> float:
    matrices = {name: tensor.numel() for name, tensor in model.items() if tensor.dim() > 1}
    entries = [entry for entry in wire.decode(data).entries if entry.name in matrices]
    codes = sum(len(segment.codes) for entry in entries for segment in entry.segments)
    return codes / sum(matrices.values())
