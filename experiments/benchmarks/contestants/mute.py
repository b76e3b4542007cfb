"""Devices without speech, and the clients on them: they answer at once, with drawn numbers.

A difference follows from the speaker's number alone: what a real one has to hold, without the time
that training takes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedspeech import protocol, seeding
from fedspeech.config.model import FeatureSettings, UnitSettings
from fedspeech.models.description import ModelDescription
from fedspeech.protocol import Member
from fedspeech.tensors import Tensors, state
from fedspeech.units import learn

APP = f"{__name__}:app"
NOOP = "query.noop"
SCALE = 1e-3

app = ClientApp()


def lay_out(folder: Path, number: int) -> None:
    """So many device folders under `folder`, nothing in them."""
    for speaker in range(number):
        device = folder / "devices" / f"s{speaker:04}"
        device.mkdir(parents=True, exist_ok=True)
        (device / "device.json").write_text(json.dumps({"speaker": device.name}))


def members(nodes: Sequence[int]) -> list[Member]:
    """What they would say of themselves."""
    return [Member(f"s{i:04}", node, 300.0, 100, "") for i, node in enumerate(nodes)]


def difference(model: Tensors, speaker: str) -> Tensors:
    """Small drawn values, float32, of the model's shapes."""
    with seeding.scoped(0, 0, speaker, "mute difference"):
        return {name: SCALE * torch.randn(tensor.shape) for name, tensor in model.items()}


@app.query("noop")
def noop(message: Message, context: Context) -> Message:
    """Nothing."""
    return Message(protocol.content({}), reply_to=message)


@app.train("personalize")
def personalize(message: Message, context: Context) -> Message:
    """A drawn P_s."""
    asked = protocol.text(message.content)
    with torch.device("meta"):
        model = ModelDescription.from_json(asked["description"]).empty().state_dict()
    drawn = difference(dict(model), Path(str(context.node_config["device"])).name)
    said = {"losses": [0.0], "skipped": 0}
    return Message(protocol.content(said, difference=protocol.pack(drawn)), reply_to=message)


@app.query("word_errors")
def word_errors(message: Message, context: Context) -> Message:
    """Nothing of a candidate that comes; at the end of a race the first k by name."""
    asked = protocol.text(message.content)
    race, candidates = asked["race"], sorted(asked["candidates"])
    said = {"errors": {}, "words": 1, "part": asked["part"]}
    if race["ends"]:
        said["errors"] = dict.fromkeys(candidates, 0)
        said["race"] = {
            "kept": candidates[: race["k"]],
            "words": dict.fromkeys(candidates, 1),
            "decodings": len(candidates),
            "exhaustive": len(candidates),
            "confident": False,
        }
    return Message(protocol.content(said), reply_to=message)


@app.train("install")
def install(message: Message, context: Context) -> Message:
    """Take M_s and forget it."""
    said = {"installed": protocol.text(message.content)["model"]}
    return Message(protocol.content(said), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Flower's plain route: the model that was sent, moved a little."""
    sent = protocol.arrays(message.content)["arrays"].to_torch_state_dict()
    moved = difference(dict(sent), str(context.node_config["partition-id"]))
    arrays = ArrayRecord({name: sent[name] + moved[name] for name in moved})
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def description(name: str) -> ModelDescription:
    """A model of `MODELS` with two words to spell with."""
    return ModelDescription(name, FeatureSettings(), learn(["yes no"], UnitSettings(kind="words")))


def generic(about: ModelDescription, seed: int) -> Tensors:
    """G with drawn weights."""
    with seeding.scoped(seed, 0, "", "benchmark model"):
        return state(about.empty())
