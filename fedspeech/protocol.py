"""The messages between server and clients, as Flower records: the one place that knows their names.

Every message carries one `ConfigRecord` with a JSON text, and tensors where it has to. What never
leaves a client: audio, features, transcripts, hypotheses, file names, the speaker's real name.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedspeech.errors import ModelError
from fedspeech.tensors import Tensors

DESCRIBE = "query.describe"
"""Down: nothing. Up: speaker (pseudonym), seconds, utterances, generation."""
PERSONALIZE = "train.personalize"
"""Down: task, round, generation, start; G where the device lacks it. Up: P_s - G, loss, skipped."""
WORD_ERRORS = "query.word_errors"
"""Down: candidates' P - G; part. Up: errors of each candidate, words."""
INSTALL = "train.install"
"""Down: M_s, or the hash of what the device holds. Up: the hash of what was installed."""
EVALUATE = "evaluate.personal"
"""Down: alphas, choose. Up: words and errors of each utterance of test_s by alpha; chosen alpha."""
PLAIN_TRAIN, PLAIN_EVALUATE = "train", "evaluate"
"""Flower's own routes, for its own strategies: equal keys down and up."""

TEXT = "text"


class Member(NamedTuple):
    """What `query.describe` said of one speaker, and the node where it lives."""

    speaker: str
    node: int
    seconds: float
    utterances: int
    generation: str


def content(text: Mapping[str, Any], **arrays: ArrayRecord) -> RecordDict:
    """A message's content: what JSON can say, and named sets of tensors."""
    records: dict[str, Any] = {TEXT: write_text(text)}
    return RecordDict({**records, **arrays})


def text(records: RecordDict) -> dict[str, Any]:
    """What the JSON of a message says; empty where it has none."""
    record = records.config_records.get(TEXT)
    return read_text(record) if record is not None else {}


def write_text(text: Mapping[str, Any]) -> ConfigRecord:
    """What JSON can say, as a Flower record."""
    return ConfigRecord({"json": json.dumps(text, sort_keys=True)})


def read_text(record: ConfigRecord) -> dict[str, Any]:
    """What the record of `write_text` says."""
    return dict(json.loads(str(record["json"])))


def pack(tensors: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Tensors as a Flower record, in the order of their names."""
    return ArrayRecord({name: tensors[name] for name in sorted(tensors)})


def unpack(record: ArrayRecord) -> Tensors:
    """A Flower record as tensors. Raises ModelError where a value is not an array."""
    try:
        return {name: torch.tensor(record[name].numpy()) for name in sorted(record)}
    except (ValueError, TypeError, EOFError) as error:
        raise ModelError(f"a tensor of the message cannot be read: {error}") from None


def size(records: RecordDict) -> int:
    """Bytes of a message's content: arrays as they are serialized, their names, and the text."""
    arrays = sum(
        len(name) + len(array.data)
        for record in records.array_records.values()
        for name, array in record.items()
    )
    said = sum(
        len(str(key)) + (len(value.encode()) if isinstance(value, str) else 8)
        for record in [*records.config_records.values(), *records.metric_records.values()]
        for key, value in record.items()
    )
    return arrays + said


def identity(message: Message, speaker: str) -> str:
    """What a message asks of whom in which round: SHA-256 over everything but the tensors.

    Tensors are named by their hashes in the text; a device that holds them is not sent them again,
    and it is the same question all the same.
    """
    metadata = message.metadata
    said = {
        key: {name: str(value) for name, value in sorted(record.items())}
        for key, record in sorted(message.content.config_records.items())
    }
    name = json.dumps([metadata.message_type, metadata.group_id, speaker, said])
    return hashlib.sha256(name.encode()).hexdigest()


def failure(message: Message) -> str | None:
    """Why a reply carries no answer, in one line, or None where it does."""
    if not message.has_error():
        return None
    reason = (message.error.reason or "").strip()
    return reason.splitlines()[-1] if reason else f"Flower's error {message.error.code}"
