"""What the progress line says of a device's answer: its loss, or its word error rate."""

from flwr.app import Message

from fedspeech import protocol


def detail(reply: Message) -> str:
    """A few words on an answer that was checked already, or nothing."""
    said = protocol.text(reply.content)
    match reply.metadata.message_type:
        case protocol.PERSONALIZE:
            return f"loss {said['losses'][-1]:.2f}"
        case protocol.WORD_ERRORS:
            return _rate("best candidate", min(said["errors"].values()), said["words"])
        case protocol.EVALUATE:
            least = min(sum(errors) for errors in said["errors"])
            return _rate("best alpha", least, sum(said["words"]))
        case protocol.PLAIN_TRAIN | protocol.PLAIN_EVALUATE:
            return _measured(reply)
    return ""


def _rate(name: str, errors: int, words: int) -> str:
    return f"{name} {100 * errors / words:.1f} % WER" if words else ""


def _measured(reply: Message) -> str:
    (metrics,) = reply.content.metric_records.values()
    if "train_loss" in metrics:
        return f"loss {metrics['train_loss']:.2f}"
    rate = metrics.get("word_error_rate")
    return "" if rate is None else f"{100 * rate:.1f} % WER"
