"""The messages between server and clients, as Flower records: the one place that knows their names.

Every message carries one `ConfigRecord` with a JSON text, and tensors where it has to. What never
leaves a client: audio, features, transcripts, hypotheses, file names, the speaker's real name.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import array as flower_array
from flwr.common.serde import config_record_to_proto, metric_record_to_proto
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedspeech.diff.apply import apply_all
from fedspeech.diff.budget import check_budgets
from fedspeech.errors import DiffError, LacksError, ModelError
from fedspeech.tensors import Tensors

DESCRIBE = "query.describe"
"""Down: nothing. Up: speaker (pseudonym), seconds, utterances, generation; of a box the hash of its
P_s."""
PERSONALIZE = "train.personalize"
"""Down: description, round (and the one that it began in), seed, settings, generation, where to
start, and the budget; G where the device lacks it, as diffs where it holds an earlier generation.
Up: P_s - G, or a diff from G to P_s; losses, skipped, and with a diff the hash of P_s."""
WORD_ERRORS = "query.word_errors"
"""Down: candidates' P - G; part. Up: errors of each candidate, words.
Of a race, down: a few candidates, then the hashes of all; k, confidence, budget, seed, round, how
many and which candidates race, and whether it ends. Up: nothing before it ends; then errors and
words of each candidate, the kept ones, and how many decodings that took."""
INSTALL = "train.install"
"""Down: base, alpha, hash of M_s; M_s unless it is G, whole or as a diff from what is held. Up: the
hash of what was installed."""
EVALUATE = "evaluate.personal"
"""Down: base, hashes of M_s and P_s, alphas, choose; M_s unless it is G, whole or as a
diff from G. Up: words and errors of each utterance of test_s by alpha; chosen alpha. The device
does not keep this M_s."""
PLAIN_TRAIN, PLAIN_EVALUATE = "train", "evaluate"
"""Flower's own routes, for its own strategies: equal keys down and up."""

TEXT = "text"
SIGNED = "signed"
"""The record with the statements that sign G; they may change while the question stays the same."""
GENERIC = "generic"
"""The record of `train.personalize` that brings G."""
MODEL = "model"
"""The record of `train.install` and `evaluate.personal` that brings M_s."""
KEPT = {PERSONALIZE: GENERIC, INSTALL: MODEL}
"""What a message brings that its device keeps: asked once more, it may do without."""
DIFFS = "fedspeech.diff."
"""Begins the names of the arrays of a record that holds diffs instead of tensors."""
EXAMPLES = "num-examples"
"""What Flower's strategies weight an answer by."""
PIECE_BYTES = 2**18
"""Of a tensor that cross a link at once. Of two pieces that are sent side by side both have to be
there before Flower's client has waited 30 s for an answer, or both are sent again: that is 140
kbit/s. What is there when a link is cut is not sent again."""


Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)


class Messages(Iterable[Message]):
    """Messages that are made as they are sent, and how many there will be, for whoever shows it."""

    def __init__(self, made: Iterator[Message], count: int) -> None:
        self._made, self._count = made, count

    def __iter__(self) -> Iterator[Message]:
        return self._made

    def __len__(self) -> int:
        return self._count


class Member(NamedTuple):
    """What `query.describe` said of one speaker, and the node where it lives."""

    speaker: str
    node: int
    seconds: float
    utterances: int
    generation: str
    personal: str = ""
    """The hash of the P_s that a box holds; empty where there is none."""
    budgets: Mapping[str, str] = {}
    """What the device allows for itself, by `fedspeech.budgets`' names."""


def cut_into_pieces() -> None:
    """Let Flower send tensors in pieces of `PIECE_BYTES`; its own are twenty times as large."""
    flower_array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE = PIECE_BYTES


def content(text: Mapping[str, Any], **arrays: ArrayRecord) -> RecordDict:
    """A message's content: what JSON can say, and named sets of tensors."""
    records: dict[str, Any] = {TEXT: write_text(text)}
    return RecordDict({**records, **arrays})


def records_of(content: RecordDict, kind: type[Record]) -> dict[str, Record]:
    """The records of one type, by name.

    Flower's views (`array_records` and the like) are cycles of references, which hold everything
    that the message carries until Python happens to look for cycles.
    """
    return {name: record for name, record in content.items() if isinstance(record, kind)}


def arrays(content: RecordDict) -> dict[str, ArrayRecord]:
    """The sets of tensors, by name."""
    return records_of(content, ArrayRecord)


def text(content: RecordDict) -> dict[str, Any]:
    """What the JSON of a message says; empty where it has none."""
    record = records_of(content, ConfigRecord).get(TEXT)
    return read_text(record) if record is not None else {}


def write_text(text: Mapping[str, Any]) -> ConfigRecord:
    """What JSON can say, as a Flower record."""
    return ConfigRecord({"json": json.dumps(text, sort_keys=True)})


def statements(content: RecordDict) -> list[str]:
    """Those that sign the G of a message; none where it is not signed."""
    record = records_of(content, ConfigRecord).get(SIGNED)
    return list(read_text(record)[SIGNED]) if record is not None else []


def read_text(record: ConfigRecord) -> dict[str, Any]:
    """What the record of `write_text` says."""
    return dict(json.loads(str(record["json"])))


def pack(tensors: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Tensors as a Flower record, in the order of their names."""
    return ArrayRecord({name: tensors[name] for name in sorted(tensors)})


def pack_diffs(diffs: Sequence[bytes]) -> ArrayRecord:
    """Encoded diffs as a Flower record, in their order."""
    return ArrayRecord(
        {
            f"{DIFFS}{number:04}": Array(np.frombuffer(data, np.uint8))
            for number, data in enumerate(diffs)
        }
    )


def holds_diffs(record: ArrayRecord) -> bool:
    """Whether a record holds diffs, and not tensors."""
    return bool(record) and all(name.startswith(DIFFS) for name in record)


def unpack_diffs(record: ArrayRecord) -> list[bytes]:
    """The encoded diffs of a record. Raises ModelError where a value is not an array."""
    return [tensor.numpy().tobytes() for tensor in unpack(record).values()]


def unpack_onto(record: ArrayRecord, models: Callable[[str], Tensors]) -> Tensors:
    """The model of a record: its tensors, or what its diffs lead to; `models` gives by its hash the
    one that they are for. Raises ModelError, or DiffError as `fedspeech.diff.apply` does.
    """
    if holds_diffs(record):
        return apply_all(models, unpack_diffs(record))
    return unpack(record)


def unpack(record: ArrayRecord) -> Tensors:
    """A Flower record as tensors. Raises ModelError where a value is not an array."""
    try:
        return {name: torch.tensor(record[name].numpy()) for name in sorted(record)}
    except (ValueError, TypeError, EOFError) as error:
        raise ModelError(f"a tensor of the message cannot be read: {error}") from None


def size(records: RecordDict) -> int:
    """Bytes of a message's content as Flower serializes it (Protocol Buffers).

    What carries it besides, metadata, HTTP and TLS, is not counted. The tensors' bytes are counted
    without being copied.
    """
    return sum(
        _field(_text_field(name) + _field(_record_size(record))) for name, record in records.items()
    )


def _record_size(record: ArrayRecord | MetricRecord | ConfigRecord) -> int:
    if isinstance(record, ArrayRecord):
        return sum(
            _field(_text_field(name) + _field(_array_size(array))) for name, array in record.items()
        )
    if isinstance(record, MetricRecord):
        return int(metric_record_to_proto(record).ByteSize())
    return int(config_record_to_proto(record).ByteSize())


def _array_size(array: Array) -> int:
    shape = sum(map(_varint, array.shape))
    parts = _text_field(array.dtype) + _text_field(array.stype)
    return parts + sum(_field(size) for size in (shape, len(array.data)) if size)


def _text_field(text: str) -> int:
    """An empty text is left out."""
    return _field(len(text.encode())) if text else 0


def _field(size: int) -> int:
    """Bytes of a field with so many of content: its tag, their number, and they themselves."""
    return 1 + _varint(size) + size


def _varint(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))


def identity(message: Message, speaker: str, arrays: str = "") -> str:
    """What a message asks of whom in which round: SHA-256 over everything but the tensors and who
    has signed them.

    Our texts name tensors by their hashes; a device that holds them is not sent them again, and it
    is the same question all the same. Flower's own messages do not: `arrays` is the hash of theirs.
    """
    metadata = message.metadata
    said = {
        key: {name: str(value) for name, value in sorted(record.items())}
        for key, record in sorted(records_of(message.content, ConfigRecord).items())
        if key != SIGNED
    }
    name = json.dumps([metadata.message_type, metadata.group_id, speaker, said, arrays])
    return hashlib.sha256(name.encode()).hexdigest()


NO_ANSWER = "no answer"
"""How the reason begins where a device has not answered."""
OFFLINE = "offline"
"""Is in that reason where the device is not there."""


def failure(message: Message) -> str | None:
    """Why a reply carries no answer, in one line, or None where it does."""
    if not message.has_error():
        return None
    reason = (message.error.reason or "").strip()
    return reason.splitlines()[-1] if reason else f"Flower's error {message.error.code}"


def lacks(message: Message) -> bool:
    """Whether a reply says that its device does not hold what it was to go on from."""
    reason = message.error.reason if message.has_error() else ""
    return (reason or "").startswith(LacksError.__name__)


# What devices answer. Whatever comes over the network is checked before it is believed.

Count = Annotated[int, Field(ge=0)]


class Answer(BaseModel):
    """The text of a device's answer to one type of message; more than that is not looked at."""

    model_config = ConfigDict(frozen=True, strict=True)

    def check(self, asked: Mapping[str, Any]) -> None:
        """Raise ValueError unless this answers what was asked."""


class Described(Answer):
    """To `query.describe`. The speaker names files, so it is a plain word."""

    speaker: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    utterances: Count
    generation: str
    personal: str = ""
    budgets: dict[Literal["generic", "base", "personal"], str] = {}

    def check(self, asked: Mapping[str, Any]) -> None:
        """Raise ValueError where a budget is none."""
        try:
            check_budgets(self.budgets)
        except DiffError as error:
            raise ValueError(f"budgets.{error}") from None


class Personalized(Answer):
    """To `train.personalize`: mean loss of each epoch, utterances that could not be spelled, and,
    where P_s comes as a diff, the hash of P_s as the device holds it."""

    losses: Annotated[list[float], Field(min_length=1)]
    skipped: Count
    personal: str = ""


class Raced(Answer):
    """How a race on a device ended, beside the errors: see `racing.Race`."""

    kept: list[str]
    words: dict[str, Count]
    decodings: Count
    exhaustive: Count
    confident: bool

    def check(self, asked: Mapping[str, Any]) -> None:
        """Raise ValueError unless k of the candidates were kept, and each has its words."""
        if set(self.words) != set(asked["candidates"]):
            raise ValueError("expected the words of each candidate")
        kept = set(self.kept)
        if not len(kept) == len(self.kept) == asked["race"]["k"] or not kept <= set(self.words):
            raise ValueError(f"kept {self.kept}, expected {asked['race']['k']} of the candidates")


class Judged(Answer):
    """To `query.word_errors`."""

    errors: dict[str, Count]
    words: Count
    part: str
    race: Raced | None = None

    def check(self, asked: Mapping[str, Any]) -> None:
        """Raise ValueError unless every candidate was judged on the part that was named."""
        race = asked.get("race")
        told = race is None or race["ends"]
        judged = set(asked["candidates"]) if told else set()
        if set(self.errors) != judged or self.part != asked["part"]:
            raise ValueError(f"expected the errors of each candidate on {asked['part']}_s")
        if race is not None and race["ends"]:
            if self.race is None:
                raise ValueError("expected how the race ended")
            self.race.check(asked)


class Installed(Answer):
    """To `train.install`."""

    installed: str

    def check(self, asked: Mapping[str, Any]) -> None:
        """Raise ValueError unless it is the model that was sent."""
        if self.installed != asked["model"]:
            raise ValueError(f"installed {self.installed[:12]}, expected {asked['model'][:12]}")


class Evaluated(Answer):
    """To `evaluate.personal`: words of each utterance, errors by alpha and utterance."""

    words: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    errors: list[list[Count]]
    chosen: float | None

    def check(self, asked: Mapping[str, Any]) -> None:
        """Raise ValueError unless there is one number for each alpha and utterance."""
        if [len(each) for each in self.errors] != [len(self.words)] * len(asked["alphas"]):
            raise ValueError("expected one number of errors for each alpha and utterance")
        if self.chosen not in (asked["choose"] or [None]):
            raise ValueError(f"chose alpha {self.chosen}, expected one of {asked['choose']}")


ANSWERS: dict[str, type[Answer]] = {
    DESCRIBE: Described,
    PERSONALIZE: Personalized,
    WORD_ERRORS: Judged,
    INSTALL: Installed,
    EVALUATE: Evaluated,
}


def check_answer(kind: str, asked: RecordDict, content: RecordDict) -> None:
    """Raise ModelError unless an answer has the form that its message type promises."""
    if kind in (PLAIN_TRAIN, PLAIN_EVALUATE):
        _check_metrics(content)
    if kind not in ANSWERS:
        return
    try:
        ANSWERS[kind].model_validate(text(content)).check(text(asked))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"malformed answer: {where}: {first['msg']}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"malformed answer: {error}") from None


def _check_metrics(content: RecordDict) -> None:
    """Flower's strategies give up the whole round where one answer lacks its weight."""
    records = list(records_of(content, MetricRecord).values())
    examples = records[0].get(EXAMPLES) if len(records) == 1 else None
    if not isinstance(examples, int | float) or not 0 < examples < math.inf:
        raise ModelError(f"malformed answer: expected one record with {EXAMPLES}, a number above 0")
