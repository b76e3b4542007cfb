"""How many messages travel together: quick ones by the hundred, slow ones one at a time."""

from fedspeech.simulation.worker import QUICK_SECONDS

MOST = 512


class Pace:
    """A size of batch for each message type, learned as the batches come back."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}

    def size(self, kind: str) -> int:
        """How many messages of this type to hand to a worker."""
        return self._sizes.get(kind, 1)

    def learn(self, kind: str, handed: int, answered: int, seconds: float) -> None:
        """A worker was handed so many messages and answered the first of them in some seconds.

        A whole batch that came back quickly may be twice as large the next time; of one that the
        worker broke off, as many as it did. Smaller batches than were allowed say nothing.
        """
        if answered < handed:
            self._sizes[kind] = answered
        elif seconds > QUICK_SECONDS:
            self._sizes[kind] = 1
        elif handed >= self.size(kind):
            self._sizes[kind] = min(2 * handed, MOST)
