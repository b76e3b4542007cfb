"""The shipped client app with faults: killed in the middle of a message, raising, poisoned.

`$FAULTS` names a folder with `plan.json`, a list of {"kind", "speaker", "fault", "times"}: the
first so many messages of that type to that speaker meet the fault. Ray's workers inherit the
variable from the process that starts Ray, so it stays the same and `plan` overwrites the file.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from clients.app import app as shipped
from fedspeech import protocol, seeding

APP = "faulty_client:app"
COHORT_APP = "faulty_cohort:app"
"""The same with faults while a cohort is fine-tuned: their kind is COHORT."""
COHORT = "cohort"
VARIABLE = "FAULTS"
LONGEST_LIFE = 0.3
"""Seconds into a message, before which its worker is signalled; the messages take about as long."""
ALWAYS = 1000
ANY = "any"
SLOW_SECONDS = 0.06
"""Longer than what the engine takes for quick: such messages travel singly."""
SIGNALS = {"die": signal.SIGKILL, "hang": signal.SIGSTOP}
POISONS: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "nan": lambda d: {**d, "output.bias": d["output.bias"] * float("nan")},
    "inf": lambda d: {**d, "output.bias": d["output.bias"] + float("inf")},
    "shape": lambda d: {**d, "output.bias": d["output.bias"][:-1]},
    "missing": lambda d: {name: tensor for name, tensor in d.items() if name != "output.bias"},
    "extra": lambda d: {**d, "output.more": d["output.bias"]},
    "empty": lambda d: {},
}

app = ClientApp()


def plan(faults: Sequence[dict[str, Any]]) -> None:
    """What is to go wrong from now on."""
    folder = Path(os.environ[VARIABLE])
    for met in folder.glob("met-*"):
        met.unlink()
    (folder / "plan.json").write_text(json.dumps(list(faults)))


def met() -> int:
    """How many faults there have been."""
    return len(list(Path(os.environ[VARIABLE]).glob("met-*")))


def drawn(kind: str, speaker: str) -> tuple[str, float]:
    """What is to happen, and for a death how long into the message."""
    folder = Path(os.environ[VARIABLE])
    for number, one in enumerate(json.loads((folder / "plan.json").read_text())):
        if one["kind"] not in (kind, ANY) or one["speaker"] not in (speaker, ANY):
            continue
        for time_ in range(one.get("times", ALWAYS)):
            try:
                (folder / f"met-{number}-{time_}").touch(exist_ok=False)
            except FileExistsError:
                continue
            draw = seeding.generator(one.get("seed", 0), time_, speaker, kind)
            return str(one["fault"]), draw.uniform(0, LONGEST_LIFE)
    return "", 0.0


def last_at_work() -> int:
    """The process that was the last to begin a slow message."""
    return int((Path(os.environ[VARIABLE]) / "at-work").read_text())


def _tell_who_works() -> None:
    path = Path(os.environ[VARIABLE]) / "at-work"
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(str(os.getpid()))
    part.replace(path)


def signalled_later(fault: str, seconds: float) -> bool:
    """Whether the fault is a signal; if so, this process gets it after so many seconds."""
    if fault not in SIGNALS:
        return False

    def signal_after() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), SIGNALS[fault])

    threading.Thread(target=signal_after, daemon=True).start()
    return True


def _route(message: Message, context: Context) -> Message:
    speaker = Path(str(context.node_config["device"])).name
    fault, seconds = drawn(message.metadata.message_type, speaker)
    if fault == "raise":
        raise RuntimeError("this client raises")
    gone = signalled_later(fault, seconds)
    if fault == "slow":
        _tell_who_works()
        time.sleep(SLOW_SECONDS)
    reply = shipped(message, context)
    if gone:
        time.sleep(60)
    if fault in POISONS:
        ((name, record),) = reply.content.array_records.items()
        reply.content[name] = ArrayRecord(POISONS[fault](protocol.unpack(record)))
    if fault == "no tensors":
        del reply.content[next(iter(reply.content.array_records))]
    if fault == "no metrics":
        del reply.content["metrics"]
    if fault == "fewer words":
        said = protocol.text(reply.content)
        shorter = {"words": said["words"][1:], "errors": [each[1:] for each in said["errors"]]}
        reply.content[protocol.TEXT] = protocol.write_text({**said, **shorter})
    if fault == "no text":
        reply.content[protocol.TEXT] = protocol.write_text({})
    return reply


for _register, _action in (
    (app.query, "describe"),
    (app.query, "word_errors"),
    (app.train, "personalize"),
    (app.train, "install"),
    (app.evaluate, "personal"),
    (app.train, "default"),
    (app.evaluate, "default"),
):
    _register(_action)(_route)
