"""What the progress line says of a device's answer: its loss, or its word error rate."""

from collections.abc import Mapping
from typing import Any

from flwr.app import Message, MetricRecord

from fedspeech import protocol


def detail(reply: Message) -> str:
    """A few words on an answer that was checked already, or nothing."""
    said = protocol.text(reply.content)
    match reply.metadata.message_type:
        case protocol.PERSONALIZE:
            return f"loss {said['losses'][-1]:.2f}"
        case protocol.WORD_ERRORS:
            return _best_candidate(said)
        case protocol.EVALUATE:
            least = min(sum(errors) for errors in said["errors"])
            return _rate("best alpha", least, sum(said["words"]))
        case protocol.PLAIN_TRAIN | protocol.PLAIN_EVALUATE:
            return _measured(reply)
    return ""


def _best_candidate(said: Mapping[str, Any]) -> str:
    if said.get("race") is not None:
        best = said["race"]["kept"][0]
        return _rate("best candidate", said["errors"][best], said["race"]["words"][best])
    if not said["errors"]:  # part of a race: nothing is told before it ends
        return ""
    return _rate("best candidate", min(said["errors"].values()), said["words"])


def _rate(name: str, errors: int, words: int) -> str:
    return f"{name} {100 * errors / words:.1f} % WER" if words else ""


def _measured(reply: Message) -> str:
    """Somebody else's client app may measure other things."""
    (metrics,) = protocol.records_of(reply.content, MetricRecord).values()
    loss, rate = metrics.get("train_loss"), metrics.get("word_error_rate")
    if isinstance(loss, int | float):
        return f"loss {loss:.2f}"
    return f"{100 * rate:.1f} % WER" if isinstance(rate, int | float) else ""
