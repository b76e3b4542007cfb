"""How models reach devices: whole, or as diffs from what is held there, within budgets."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from flwr.app import ArrayRecord

from fedspeech import protocol
from fedspeech.budgets import BASE, GENERIC, Budgets
from fedspeech.diff.budget import Made, make
from fedspeech.diff.methods import METHODS
from fedspeech.errors import BudgetError, DiffError, ModelError
from fedspeech.population import Population
from fedspeech.releases import LINE, Releases
from fedspeech.tensors import Tensors, sha256, size
from strategies.outcome import Pushed

Records = dict[str, ArrayRecord]
"""What a message carries of a model; nothing where the device holds it."""


class Push(NamedTuple):
    """A model on its way: the hash of what the device will have, its records, what they took."""

    name: str
    records: Records
    took: Pushed


class Pushes:
    """Decides for each model and device what is sent.

    Raises DiffError where nothing may be: BudgetError where that is the device's own failure.
    """

    def __init__(
        self, population: Population, releases: Releases, budgets: Budgets, method: str
    ) -> None:
        self._population, self._releases = population, releases
        self._budgets, self._method = budgets, method
        self._generic: tuple[str, Tensors] = "", {}

    def generic(self, speaker: str, held: str, whole: ArrayRecord) -> Records:
        """This run's G for a device that holds another release, or none."""
        budget, (generation, _) = self._budgets.of(speaker, GENERIC), self._held_generic()
        if held == generation:
            return {}
        diffs = self._releases.deliver(held, budget, generation)
        return {protocol.GENERIC: whole if diffs is None else protocol.pack_diffs(diffs)}

    def once(self, speaker: str, model: Tensors, at: str | None) -> Push:
        """M_s to be judged and forgotten, as a diff from G; `at` is one more budget."""
        budget = self._budgets.of(speaker, BASE, at)
        if budget is None:
            return self._whole(model)
        generation, generic = self._held_generic()
        with self._own_failure(speaker, at):
            made = make(generic, model, budget, METHODS[self._method](generation))
        if (name := sha256(made.result)) == generation:
            return Push(name, {}, Pushed(0, made.lost))
        return _as_diff(name, made)

    def to_keep(self, speaker: str, model: Tensors, held: str | None) -> Push:
        """M_s to be installed, as a diff from the M_s that is installed (`held`), else from G.

        The server remembers what it has pushed to each device as a line of diffs. Raises ModelError
        where that line is gone or damaged.
        """
        budget = self._budgets.of(speaker, BASE)
        if budget is None:
            return self._whole(model)
        line = Releases(self._population.pushed(speaker))
        if held is None:
            held = line.begin(self._population.generic_path)
        elif held not in line.names:
            raise ModelError(
                f"{line.folder / LINE}: missing or damaged: expected the model {held[:12]}, which "
                f"the device of {speaker} holds; without it the run cannot go on"
            )
        there = line.model(held)
        with self._own_failure(speaker):
            made = make(there, model, budget, METHODS[self._method](held))
        name = sha256(made.result)
        line.add(held, name, made.data)
        return _as_diff(name, made)

    @contextmanager
    def _own_failure(self, speaker: str, at: str | None = None) -> Iterator[None]:
        """Let it be told apart whether a device's own budget is too small, or that of the run."""
        try:
            yield
        except DiffError as error:
            if self._budgets.is_own(speaker, BASE, at):
                raise BudgetError(f"M_s: {error}") from None
            raise

    def _whole(self, model: Tensors) -> Push:
        name, (generation, _) = sha256(model), self._held_generic()
        if name == generation:
            return Push(name, {}, Pushed(0))
        return Push(name, {protocol.MODEL: protocol.pack(model)}, Pushed(size(model)))

    def _held_generic(self) -> tuple[str, Tensors]:
        """G and its hash, read once."""
        if not self._generic[0]:
            generic = dict(self._population.generic())
            self._generic = sha256(generic), generic
        return self._generic


def _as_diff(name: str, made: Made) -> Push:
    records = {protocol.MODEL: protocol.pack_diffs([made.data])}
    return Push(name, records, Pushed(len(made.data), made.lost, made.additive))
