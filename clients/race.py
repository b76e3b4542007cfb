"""One device's part in a race between other speakers' models, `fedspeech/racing.py`.

Candidates come in several messages, since a few models are all that a message can carry; then the
race ends. Each candidate is judged on the utterances of the first rung as it comes, and the best so
far stay on the disk: which ones these are at the end does not depend on the order of the messages.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clients.speaker import TRAIN, Speaker
from fedspeech import racing, seeding
from fedspeech.device import candidates
from fedspeech.device.candidates import HELD, RACE
from fedspeech.errors import ModelError
from fedspeech.tensors import Tensors


class DeviceRace:
    """What one message about a race asks of a speaker's device."""

    def __init__(self, me: Speaker, asked: Mapping[str, Any]) -> None:
        self._me, self._asked = me, dict(asked)
        self._race = {key: value for key, value in asked["race"].items() if key != "ends"}
        self._held = candidates.of(me.store)
        self._words = me.words(TRAIN)
        self._first, self._survivors = racing.first_rung(
            self._race["candidates"],
            self._race["k"],
            len(self._words),
            self._generator(),
            self._race["budget"],
        )

    def answer(self, difference: Callable[[str], Tensors]) -> dict[str, Any]:
        """What the device answers; `difference` gives a candidate's tensors out of the message.

        Nothing is told before the race ends. Raises ModelError where a candidate does not fit G, or
        is not held although the race ends.
        """
        if self._asked["race"]["ends"]:
            return self._end()
        self._take(difference)
        return {"errors": {}, "words": 0, "part": self._asked["part"]}

    def _take(self, difference: Callable[[str], Tensors]) -> None:
        judged, came = self._judged(), self._asked["candidates"]
        names = sorted(came)
        counts = self._me.judge(map(difference, names), self._asked["part"], self._first)
        for name, found in zip(names, counts, strict=True):
            judged[name] = {"hash": came[name], "errors": found.errors.tolist()}
        best = self._best(judged)
        for name in sorted(best & set(came)):
            self._held.hold(came[name], difference(name))
        held = sorted({judged[name]["hash"] for name in best})
        self._me.store.note(**{RACE: {"of": self._race, "judged": judged, HELD: held}})
        self._held.hold_only(held)

    def _judged(self) -> dict[str, dict[str, Any]]:
        """Hash and errors on the first rung of each candidate that came in this race."""
        noted = self._me.store.state().get(RACE, {})
        return dict(noted.get("judged", {})) if noted.get("of") == self._race else {}

    def _best(self, judged: Mapping[str, Mapping[str, Any]]) -> set[str]:
        ranked = sorted(judged, key=lambda name: (sum(judged[name]["errors"]), name))
        return set(ranked[: self._survivors])

    def _end(self) -> dict[str, Any]:
        """Go on with what is held, on this device's own utterances, and tell how it ended.

        A race that has ended is not run again: its candidates are gone.
        """
        noted = self._me.store.state().get(RACE, {})
        if noted.get("asked") != self._asked:
            noted = {"asked": self._asked, "answered": self._run()}
            self._me.store.note(**{RACE: noted})
        self._held.hold_only(())
        return dict(noted["answered"])

    def _run(self) -> dict[str, Any]:
        judged, part = self._judged(), self._asked["part"]
        if {name: one["hash"] for name, one in judged.items()} != self._asked["candidates"]:
            raise ModelError("the race ends with other candidates than those that came")

        def errors(names: Sequence[str], utterances: np.ndarray) -> np.ndarray:
            if np.array_equal(utterances, self._first):
                return np.array([judged[name]["errors"] for name in names])
            models = (self._held.get(judged[name]["hash"]) for name in names)
            return np.stack([c.errors for c in self._me.judge(models, part, utterances)])

        settings = self._race["confidence"], self._race["budget"]
        names, k = self._asked["candidates"], self._race["k"]
        race = racing.race(names, k, self._words, errors, self._generator(), *settings)
        told = {**vars(race), "kept": list(race.kept)}
        words = int(self._words.sum())
        return {"errors": told.pop("errors"), "words": words, "part": part, "race": told}

    def _generator(self) -> np.random.Generator:
        return seeding.generator(self._race["seed"], self._race["round"], self._me.name, RACE)
