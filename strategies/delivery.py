"""What boxes are brought in the end: the M_s that their owners' recognizers mix P_s with."""

from flwr.serverapp import Grid

from fedspeech.config.federation import FederationSettings
from fedspeech.rules import GENERIC
from strategies.bases import BaseModels
from strategies.outcome import Outcome


def deliver(
    grid: Grid, round: int, settings: FederationSettings, bases: BaseModels, outcome: Outcome
) -> None:
    """Install M_s of the base that is reported first on every box that is still there.

    Where the devices mix, each takes the alpha that it chooses itself; where the server does, it
    mixes at the alpha that was best over all speakers. Raises RunError below the quorum.
    """
    base = settings.first_base
    if bases.mixed_on_server(base):
        alpha = best_alpha(outcome, base, settings.alphas)
        bases.install(grid, round, base, alpha, outcome.speakers, choose=())
    else:
        bases.install(grid, round, base, None, outcome.speakers, choose=settings.alphas)


def best_alpha(outcome: Outcome, base: str, alphas: tuple[float, ...]) -> float:
    """The alpha with the fewest errors over all speakers; of equal ones the larger."""

    def errors(alpha: float) -> int:
        cell = (GENERIC, 1.0) if alpha == 1.0 else (base, alpha)
        return sum(int(outcome.errors[cell][speaker].sum()) for speaker in outcome.speakers)

    return min(alphas, key=lambda alpha: (errors(alpha), -alpha))
