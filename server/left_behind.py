"""What a resumed run finds of what it had: what is damaged is named, and asked for again.

A simulated device whose models are gone would fail at the next message, and the run would go on
with a speaker less.
"""

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

from flwr.app import RecordDict

from fedspeech import protocol
from fedspeech.device import candidates
from fedspeech.device.candidates import HELD, RACE
from fedspeech.device.store import DIFFERENCE, GENERIC, MODELS, VALIDATION, Store
from fedspeech.errors import ModelError, RunError
from fedspeech.simulation import devices
from fedspeech.tensors import intact
from server.journal import Journal
from server.recorded_grid import Keeper
from strategies.personal import PersonalModels

log = logging.getLogger("fedspeech")
FINE_TUNED = GENERIC, DIFFERENCE, VALIDATION
"""What a device has once it has answered `train.personalize`."""


def check_states(folder: Path) -> None:
    """Raise RunError where a simulated device does not know which models it holds."""
    for device in devices.folders(folder):
        try:
            Store(device / MODELS).state()
        except ModelError as error:
            raise RunError(
                f"{error}\nWithout this file --resume lets the device begin anew; all else stays"
            ) from None


def check_races(folder: Path, journal: Journal) -> None:
    """Let simulated devices whose race has not ended begin it anew where candidates are lost.

    Devices share the files of candidates: each is read once.
    """
    read: dict[int, bool] = {}

    def is_intact(path: Path) -> bool:
        if not path.exists():
            return False
        file = path.stat().st_ino
        if file not in read:
            read[file] = intact(path, path.stem)
        return read[file]

    for device in devices.folders(folder):
        store = Store(device / MODELS)
        held = map(candidates.of(store).file, store.state().get(RACE, {}).get(HELD, ()))
        if (lost := next((path for path in held if not is_intact(path)), None)) is not None:
            what = "%s: missing or damaged; speaker %s is sent its candidates once more"
            log.warning(what, lost, device.name)
            journal.ask_again(protocol.WORD_ERRORS, device.name)


class LeftBehind:
    """The P_s on the server's disk and, where the devices are simulated, what they hold.

    `ended` are the speakers that were there when the last round ended.
    """

    def __init__(
        self,
        personal: PersonalModels,
        devices: Path | None,
        ended: Collection[str],
    ) -> None:
        self._personal, self._devices, self._ended = personal, devices, set(ended)
        self._unchecked = set(ended) if devices is not None else set()

    def check(self, speaker: str, kind: str) -> None:
        """Raise RunError where a device that is about to be asked lacks a model that only a round
        could bring which has ended: it would drop out.
        """
        if speaker not in self._unchecked or kind not in protocol.ANSWERS:
            return
        self._unchecked.remove(speaker)
        store = self._store(speaker)
        lacking = any(store.state().get(role) is None for role in FINE_TUNED)
        for lost in [store.folder] if lacking else store.lost():
            raise RunError(
                f"{lost}: missing or damaged\nThe round that it is from has ended: without it the "
                "run cannot be resumed"
            )

    def keeper(self) -> Keeper:
        """Keeps P_s, and asks for it again where it is not there any more."""
        return Keeper(self._personal.keep, self._still_there)

    def _still_there(self, speaker: str, content: RecordDict) -> bool:
        lost = next(self._lost(speaker, content), None)
        if lost is not None:
            log.warning("%s: missing or damaged; speaker %s is asked again", lost, speaker)
        return lost is None

    def _lost(self, speaker: str, content: RecordDict) -> Iterator[Path]:
        lost = self._personal.lost(speaker, protocol.text(content)["kept"])
        if lost is not None:
            yield lost
        # Who was there in a round that has ended cannot train again: what it began with is gone.
        if self._devices is not None and speaker not in self._ended:
            store = self._store(speaker)
            state = store.state()
            for role in FINE_TUNED:
                if not store.holds(role):
                    yield store.file(state[role]) if role in state else store.folder

    def _store(self, speaker: str) -> Store:
        assert self._devices is not None
        return Store(self._devices / speaker / MODELS)
