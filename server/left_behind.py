"""What a resumed run finds of what it had: what is damaged is named, and asked for again.

A simulated device whose models are gone would fail at the next message, and the run would go on
with a speaker less.
"""

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

from flwr.app import RecordDict

from fedspeech.device.store import DIFFERENCE, GENERIC, MODELS, VALIDATION, Store
from fedspeech.errors import ModelError, RunError
from fedspeech.population import Population
from fedspeech.simulation import devices
from server.recorded_grid import Keeper
from strategies.personal import PersonalModels

log = logging.getLogger("fedspeech")
FINE_TUNED = GENERIC, DIFFERENCE, VALIDATION
"""What a device has once it has answered `train.personalize`."""
GONE = "The round that it is from has ended: without it the run cannot be resumed"


def check_stores(folder: Path, ended: Collection[str]) -> None:
    """Raise RunError where a simulated device does not know which models it holds, or lacks one
    that only a round could bring which has ended: `ended` are the speakers that had one.
    """
    for device in devices.folders(folder):
        store = Store(device / MODELS)
        try:
            lost = _lost_for_good(store) if device.name in ended else None
            store.state()
        except ModelError as error:
            anew = "Without this file --resume lets the device begin anew; all else stays"
            raise RunError(f"{error}\n{GONE if device.name in ended else anew}") from None
        if lost is not None:
            raise RunError(f"{lost}: missing or damaged\n{GONE}")


def _lost_for_good(store: Store) -> Path | None:
    lacking = any(store.state().get(role) is None for role in FINE_TUNED)
    return next(iter([store.folder] if lacking else store.lost()), None)


class LeftBehind:
    """The P_s on the server's disk and, where the devices are simulated, what they hold."""

    def __init__(
        self, personal: PersonalModels, population: Population, devices: Path | None
    ) -> None:
        self._personal, self._population, self._devices = personal, population, devices

    def keeper(self) -> Keeper:
        """Keeps P_s, and asks for it again where it is not there any more."""
        return Keeper(self._personal.keep, self._still_there)

    def _still_there(self, speaker: str, content: RecordDict) -> bool:
        lost = next(self._lost(speaker, content), None)
        if lost is not None:
            log.warning("%s: missing or damaged; speaker %s is asked again", lost, speaker)
        return lost is None

    def _lost(self, speaker: str, content: RecordDict) -> Iterator[Path]:
        if not self._personal.still_there(speaker, content):
            yield self._population.personal_path(speaker)
        if self._devices is not None:
            store = Store(self._devices / speaker / MODELS)
            state = store.state()
            for role in FINE_TUNED:
                if not store.holds(role):
                    yield store.file(state[role]) if role in state else store.folder
