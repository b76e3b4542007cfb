"""The routes of one speaker's client: messages in, messages out. The work is in `speaker.py`."""

import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode

from clients import speaker
from clients.race import DeviceRace
from clients.speaker import Speaker
from fedspeech import protocol, tensors
from fedspeech.config.corpus import PartitionSettings
from fedspeech.config.training import PersonalSettings
from fedspeech.device import own_speech, pace, trust
from fedspeech.device.lock import locked
from fedspeech.device.store import BASE, DESCRIPTION, GENERIC, MODELS
from fedspeech.diff.wire import base_of, result_of
from fedspeech.errors import BudgetError, CorpusError, LacksError, ModelError
from fedspeech.models.description import ModelDescription
from fedspeech.simulation import devices
from fedspeech.tensors import Tensors, sha256

ERRORS = "errors.log"


def keep_errors_here(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A Flower mod: what went wrong is told in the device's own `errors.log` and not elsewhere.

    The text of an error may name files and cite transcripts; the server hears its kind only. That
    nothing fits a budget is told in numbers.
    """
    try:
        return call_next(message, context)
    except BudgetError as error:
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message)
    except Exception as error:
        kind = type(error).__name__
        told = _tell_own_log(context, message.metadata.message_type)
        reason = f"{kind} on the device{f'; its {ERRORS} says more' if told else ''}"
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def _tell_own_log(context: Context, asked: str) -> bool:
    try:
        with (folder(context) / ERRORS).open("a", encoding="utf-8") as log:
            log.write(f"{asked}: {traceback.format_exc()}\n")
    except (OSError, CorpusError):
        return False
    return True


def one_at_a_time(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A Flower mod: a killed run may have left a worker that still writes in this device."""
    with locked(folder(context) / MODELS):
        return call_next(message, context)


app = ClientApp(mods=[keep_errors_here, one_at_a_time])


def folder(context: Context) -> Path:
    """A box is told its folder; a simulated node counts through the folders of `devices`."""
    if "device" in context.node_config:
        return Path(str(context.node_config["device"]))
    found = devices.folders(Path(str(context.run_config["out"])).absolute() / "devices")
    index = int(context.node_config["partition-id"])
    if index >= len(found):
        raise CorpusError(f"node {index} has no speaker: there are {len(found)}")
    return found[index]


def _on_box(context: Context) -> bool:
    """Whether the owner's speech is here, and the message nobody else's."""
    return "speech" in context.node_config


def _speaker(context: Context) -> Speaker:
    """The speaker of this node.

    The bits of a model depend on how many threads sum up, so that number is the node's own setting
    (`threads`) and never what happens to be there; so is how nice it is to all else (`nice`).
    """
    config = context.node_config
    nice = int(config["nice"]) if "nice" in config else None
    pace.settle(int(config.get("threads", 1)), nice)
    return speaker.open_folder(folder(context))


def _candidate(me: Speaker, record: ArrayRecord) -> Tensors:
    """Another speaker's P - G."""
    if protocol.holds_diffs(record):
        return me.difference(protocol.unpack_onto(record, me.held))
    return protocol.unpack(record)


def receive(me: Speaker, message: Message) -> dict[str, Any]:
    """Take over what a `train.personalize` brings; what is to be fine-tuned."""
    asked = protocol.text(message.content)
    description = asked.pop("description")
    asked.pop("budget", None)  # of what is sent, not of what is fine-tuned
    signed = protocol.statements(message.content)
    trust.check(me.folder, signed, asked["generation"], description)
    sent = protocol.arrays(message.content).get(protocol.GENERIC)
    if sent is not None and not me.has(GENERIC, asked["generation"]):
        notes = {DESCRIPTION: description}
        keep = partial(me.receive_generic, description)
        _take(me, sent, GENERIC, asked["generation"], keep, notes)
    me.check_generic(asked["generation"])
    me.describe_model(description)
    return asked


def _take(
    me: Speaker,
    record: ArrayRecord,
    role: str,
    expected: str,
    whole: Callable[[Tensors], object],
    notes: Mapping[str, Any],
) -> None:
    """Let the expected model take its role: by diffs from what is held, or as a whole.

    Raises ModelError where another one was sent, or what is no model of the description that comes
    with it, or is held; LacksError where what the diffs are for is not here. Then nothing changes.
    """

    def check(model: Tensors) -> None:
        about = {**me.store.state(), **notes}.get(DESCRIPTION, {})
        ModelDescription.from_json(about).check(model)

    if not protocol.holds_diffs(record):
        model = protocol.unpack(record)
        _check_sent(role, expected, sha256(model))
        check(model)
        whole(model)
        return
    diffs = protocol.unpack_diffs(record)
    _check_sent(role, expected, result_of(diffs[-1]))
    if not me.store.file(base := base_of(diffs[0])).exists():
        raise LacksError(f"the diff is for the model {base[:12]}, which is not here")
    me.store.update(role, *diffs, check=lambda new: check(tensors.read(new)), **notes)


def _check_sent(role: str, expected: str, found: str) -> None:
    if found != expected:
        raise ModelError(f"expected the {role} model {expected[:12]}, {found[:12]} was sent")


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Who this is and what it holds; where a run begins, a box cuts its owner's speech for it."""
    me, asked = _speaker(context), protocol.text(message.content)
    if _on_box(context):
        parts = PartitionSettings.model_validate(asked["partition"])
        told = context.node_config
        channel = int(told["channel"]) if "channel" in told else None
        own_speech.cut(Path(str(told["speech"])), me.folder, parts, asked["begins"], channel)
    said = me.describe() | ({"personal": me.personal_hash()} if _on_box(context) else {})
    return Message(protocol.content(said), reply_to=message)


@app.train("personalize")
def personalize(message: Message, context: Context) -> Message:
    """Fine-tune P_s on train_s and send its difference from G."""
    me = _speaker(context)
    budget = protocol.text(message.content).get("budget")
    asked = receive(me, message)
    if _on_box(context):  # where a model that nobody needs any more is memory that training lacks
        message.content.pop(protocol.GENERIC, None)
    difference, said = me.personalize(asked)
    if budget is None:
        record = protocol.pack(difference)
    else:
        data, name = me.personal_diff(budget["bytes"], budget["method"])
        record, said = protocol.pack_diffs([data]), {**said, "personal": name}
    return Message(protocol.content(said, difference=record), reply_to=message)


@app.query("word_errors")
def word_errors(message: Message, context: Context) -> Message:
    """How other speakers' models do on this speaker's own utterances."""
    me, asked = _speaker(context), protocol.text(message.content)
    records = protocol.arrays(message.content)
    if "race" in asked:
        said = DeviceRace(me, asked).answer(lambda name: _candidate(me, records[name]))
        return Message(protocol.content(said), reply_to=message)
    names = sorted(asked["candidates"])
    counts = me.judge((_candidate(me, records[name]) for name in names), asked["part"])
    said = {
        "errors": {name: int(c.errors.sum()) for name, c in zip(names, counts, strict=True)},
        "words": int(me.words(asked["part"]).sum()),
        "part": asked["part"],
    }
    return Message(protocol.content(said), reply_to=message)


@app.train("install")
def install(message: Message, context: Context) -> Message:
    """Keep M_s, unless it is here: killed before it answered, a device is asked once more.

    What is for the owner's use comes with the alphas of which one is to be chosen.
    """
    me, asked = _speaker(context), protocol.text(message.content)
    expected = asked["model"]
    sent = protocol.arrays(message.content).get(protocol.MODEL)
    if not me.has(BASE, expected):
        if sent is not None:
            _take(me, sent, BASE, expected, me.install, {})
        elif asked["held"]:
            me.install(None)
        else:
            raise LacksError(f"M_s {expected[:12]} is not here, and did not come along")
    if "choose" in asked:
        me.put_to_use(asked["choose"])
    return Message(protocol.content({"installed": me.store.hash(BASE)}), reply_to=message)


@app.evaluate("personal")
def evaluate_personal(message: Message, context: Context) -> Message:
    """Word errors on test_s by alpha, and the alpha that this device would take."""
    me, asked = _speaker(context), protocol.text(message.content)
    sent = protocol.arrays(message.content).get(protocol.MODEL)
    model = None if sent is None else protocol.unpack_onto(sent, me.held)
    base = me.base_model(asked["model"], model)
    counts = me.test_errors(base, asked["alphas"], asked["personal"])
    said = {
        "words": counts[0].words.tolist(),
        "errors": speaker.as_lists(counts),
        "chosen": me.choose_alpha(base, asked["choose"]) if asked["choose"] else None,
    }
    return Message(protocol.content(said), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Flower's plain route: fine-tune what was sent on train_s and send it back whole."""
    me, asked = _speaker(context), _plain(message)
    description = ModelDescription.from_json(asked["description"])
    settings = PersonalSettings.model_validate(asked["settings"])
    begin = protocol.unpack(protocol.arrays(message.content)["arrays"])
    draws, proximal = (asked["seed"], asked["server-round"]), asked["proximal-mu"]
    model, loss = me.improve(begin, description, settings, *draws, proximal)
    metrics = {"train_loss": loss, "num-examples": me.describe()["utterances"]}
    return _plain_reply(message, metrics, ArrayRecord(model))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Flower's plain route: word errors on test_s of what was sent."""
    me, asked = _speaker(context), _plain(message)
    description = ModelDescription.from_json(asked["description"])
    model = protocol.unpack(protocol.arrays(message.content)["arrays"])
    counts = me.model_errors(model, description)
    metrics = {
        "word_error_rate": float(counts.errors.sum() / counts.words.sum()),
        "num-examples": len(counts.words),
    }
    return _plain_reply(message, metrics)


def _plain(message: Message) -> dict[str, Any]:
    """What Flower's strategies send beside the arrays: our text, the round, FedProx's mu."""
    record = protocol.records_of(message.content, ConfigRecord)["config"]
    flowers = {"server-round": record["server-round"], "proximal-mu": record.get("proximal-mu", 0)}
    return {**protocol.read_text(record), **flowers}


def _plain_reply(
    message: Message, metrics: dict[str, int | float], arrays: ArrayRecord | None = None
) -> Message:
    records: dict[str, ArrayRecord | MetricRecord] = {"metrics": MetricRecord(metrics)}
    if arrays is not None:
        records["arrays"] = arrays
    return Message(RecordDict(records), reply_to=message)
