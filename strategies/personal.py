"""Personal models as they arrive: whole or as diffs, kept on the server's disk."""

from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import RecordDict

from fedspeech import protocol
from fedspeech.budgets import PERSONAL, Budgets
from fedspeech.diff.wire import result_of
from fedspeech.errors import DiffError, ModelError
from fedspeech.population import Population
from fedspeech.tensors import sha256

DIFFERENCE = "difference"
"""The record of an answer that holds P_s - G, or the diff from G to P_s."""


class Personal(NamedTuple):
    """The hashes of P_s as the server has it and as the device does: a diff may lose some of it."""

    here: str
    there: str


class PersonalModels:
    """Keeps the P_s of every speaker, each within the budget of its device."""

    def __init__(self, population: Population, budgets: Budgets, method: str) -> None:
        self._population, self._budgets, self._method = population, budgets, method

    def budget(self, speaker: str) -> dict[str, Any] | None:
        """What a device is told of the diff in which it sends P_s; None: it sends it whole."""
        bytes = self._budgets.of(speaker, PERSONAL)
        return None if bytes is None else {"bytes": bytes, "method": self._method}

    def keep(self, speaker: str, content: RecordDict) -> RecordDict:
        """Write P_s out of a reply, and give back what is left to remember of it.

        Raises ModelError where what came is not finite, does not fit G or is beyond the budget,
        DiffError where it is a damaged diff.
        """
        record = protocol.arrays(content).get(DIFFERENCE)
        if record is None:
            raise ModelError("the reply carries no difference")
        if protocol.holds_diffs(record):
            self._keep_diff(speaker, *protocol.unpack_diffs(record))
        elif (budget := self._budgets.of(speaker, PERSONAL)) is not None:
            raise ModelError(f"P_s came whole, and its budget is {budget} bytes")
        else:
            self._population.keep(speaker, protocol.unpack(record))
        return protocol.content({**protocol.text(content), "kept": self._hash(speaker)})

    def _keep_diff(self, speaker: str, data: bytes, *more: bytes) -> None:
        budget = self._budgets.of(speaker, PERSONAL)
        if more or budget is None or len(data) > budget:
            raise ModelError(f"a diff of {len(data)} bytes, expected one of at most {budget}")
        self._population.keep_diff(speaker, data)

    def found(self, speaker: str, said: dict[str, Any]) -> Personal:
        """The P_s of a reply, by what is remembered of it."""
        whole = self._budgets.of(speaker, PERSONAL) is None
        return Personal(said["kept"], said["kept" if whole else "personal"])

    def lost(self, speaker: str, name: str) -> Path | None:
        """The file that is missing or damaged of this P_s and the diff that brought it, if any."""
        path = self._population.diff_path(speaker)
        data = self._population.diff(speaker)
        try:
            if data is not None and result_of(data) != name:
                return path
        except DiffError:
            return path
        if data is None and self._budgets.of(speaker, PERSONAL) is not None:
            return path
        path = self._population.personal_path(speaker)
        try:
            return None if self._hash(speaker) == name else path
        except ModelError:
            return path

    def _hash(self, speaker: str) -> str:
        return sha256(dict(self._population.personal(speaker)))
