"""The client app for Flower's own simulation: our client, and one as its quickstart has it."""

import os
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.app import app as ours
from experiments.benchmarks.contestants import plain
from experiments.benchmarks.workload import Job, Workload

FOLDER = "FEDSPEECH_BENCHMARK"
"""The variable that tells Flower's workers where the workload is."""
QUICKSTART = "train.quickstart"

app = ClientApp()


@app.query("describe")
@app.train("personalize")
def hand_on(message: Message, context: Context) -> Message:
    """What our own engine asks, answered by the client app that it runs."""
    held = Workload(Path(os.environ[FOLDER]))
    device = held.devices[int(context.node_config["partition-id"])]
    context.node_config["device"] = str(device)
    return ours(message, context)


@app.train("quickstart")
def quickstart(message: Message, context: Context) -> Message:
    """As Flower's PyTorch quickstart: load the model and the data, train, send the model back."""
    held = Workload(Path(os.environ[FOLDER]))
    config = message.content.config_records["config"]
    job = Job(str(config["size"]), 1, int(config["local-epochs"]), 0)
    model, judge = (held.description(job.size).empty() for _ in range(2))
    speech = held.plain(int(context.node_config["partition-id"]))
    for module, part in zip((model, judge), speech.both_parts(), strict=True):
        module.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        plain.train(module, part, job.epochs)
    metrics = MetricRecord({"num-examples": len(speech.targets)})
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
