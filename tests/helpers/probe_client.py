"""A client app that tells about the process it runs in; its answers are 40 bytes of tensors."""

import logging
import os
import signal
import threading
import time

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedspeech import protocol

APP = "probe_client:app"
app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    asked = protocol.text(message.content)
    time.sleep(asked.get("seconds", 0))
    if asked.get("warns"):
        logging.getLogger("fedspeech.deeper").warning("of %s", asked["warns"])
        logging.getLogger("fedspeech").info("nothing to be told")
    if asked.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    arrays = message.content.array_records
    said = {
        "number": asked.get("number"),
        "process": os.getpid(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "threads": torch.get_num_threads(),
        "sums": {
            name: protocol.unpack(record)["x"].sum().item() for name, record in arrays.items()
        },
    }
    reply = Message(protocol.content(said), reply_to=message)
    if asked.get("unreadable"):
        reply.metadata.__dict__["_lock"] = threading.Lock()  # cannot be sent
    return reply
