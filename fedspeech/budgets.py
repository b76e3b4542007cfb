"""The most bytes that a diff to or from one device may have: the least of all that speak of it."""

from collections.abc import Iterable, Mapping, Sequence

from fedspeech.config.budget import BudgetSettings
from fedspeech.diff.budget import check_budgets, parse
from fedspeech.errors import ConfigError, DiffError

GENERIC, BASE, PERSONAL = "generic", "base", "personal"
"""What a budget is for: a generation of G, M_s (or a mix), P_s."""


def parse_own(texts: Iterable[str]) -> dict[str, str]:
    """A device's own budgets, each said as `base=500kB`, by what they are for.

    Raises ConfigError for what is none, or said twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        what, _, bytes = text.partition("=")
        if what not in (GENERIC, BASE, PERSONAL) or what in found:
            raise ConfigError(
                f"--budget: expected {GENERIC}, {BASE} or {PERSONAL} = bytes, each once, "
                f"found {text!r}"
            )
        found[what] = bytes
    try:
        check_budgets(found)
    except DiffError as error:
        raise ConfigError(f"--budget {error}") from None
    return found


class Budgets:
    """Budgets in bytes. `full` are the bytes of a whole model, of which a ratio is a share.

    `own` are, by speaker, the budgets that its line in a file or its device itself tells.
    """

    def __init__(
        self,
        settings: BudgetSettings,
        full: int,
        own: Mapping[str, Sequence[Mapping[str, str]]],
    ) -> None:
        self._full, self._own = full, own
        # That of a generation is kept when it is made; whether a device may be sent it, or the
        # whole, is for the device's own budgets to say.
        run = {BASE: settings.base, PERSONAL: settings.personal}
        self._run = {what: text for what, text in run.items() if text is not None}

    def of(self, speaker: str, what: str, at: str | None = None) -> int | None:
        """The budget of one speaker's device, None where there is none; `at` is one more."""
        own = [each[what] for each in self._own.get(speaker, ()) if what in each]
        budgets = [parse(text, self._full) for text in [*self._shared(what, at), *own]]
        return min(budgets, default=None)

    def is_own(self, speaker: str, what: str, at: str | None = None) -> bool:
        """Whether it is the device's own budget that counts, and not what the run has for all."""
        shared = [parse(text, self._full) for text in self._shared(what, at)]
        budget = self.of(speaker, what, at)
        return budget is not None and budget < min(shared, default=budget + 1)

    def _shared(self, what: str, at: str | None) -> list[str]:
        return [text for text in (self._run.get(what), at) if text]
