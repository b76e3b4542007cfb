import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients.app import app
from fedspeech import protocol, signing
from fedspeech.config.training import PersonalSettings
from fedspeech.device import identity as identities
from fedspeech.device.lock import locked
from fedspeech.device.store import BASE, MODELS
from fedspeech.device.transcribe import open_recognizer
from fedspeech.device.trust import Trust
from fedspeech.diff import budget
from fedspeech.models.description import ModelDescription
from fedspeech.tensors import sha256
from fedspeech.units import Units


@pytest.fixture(autouse=True, scope="module")
def identity():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.fixture
def ask(folders):
    """Send a message to the first device, or to the node that `node` configures."""

    def send(kind, text=None, node=None, content=None, **arrays) -> Message:
        config = {"device": str(folders[0])} if node is None else node
        out = str(folders[0].parent.parent)
        context = Context(1, 7, config, RecordDict(), {"out": out})
        records = protocol.content(text or {}, **arrays) if content is None else content
        return app(Message(records, 7, kind, group_id="1"), context)

    return send


def test_a_simulated_node_counts_through_the_device_folders(ask, folders):
    names = [
        protocol.text(ask(protocol.DESCRIBE, node={"partition-id": i}).content)["speaker"]
        for i in (0, 1)
    ]
    assert names == [folder.name for folder in folders] == sorted(names)
    reply = ask(protocol.DESCRIBE, node={"partition-id": 2})
    assert protocol.failure(reply) == "CorpusError on the device"


def test_the_node_says_how_many_threads_add_up(ask, folders):
    before = torch.get_num_threads()
    try:
        ask(protocol.DESCRIBE, node={"device": str(folders[0]), "threads": 2})
        assert torch.get_num_threads() == 2
        ask(protocol.DESCRIBE)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_box_takes_the_channel_that_it_is_told(ask, tmp_path):
    """Of its recordings, whose first channel is silent."""
    speech, device = tmp_path / "speech", tmp_path / "device"
    speech.mkdir()
    identities.settle(device, "anna")
    for number in range(4):
        tone = np.sin(np.arange(16_000) * (0.05 + 0.01 * number)) / 2
        soundfile.write(speech / f"{number}.wav", np.stack([0 * tone, tone], axis=1), 16_000)
        (speech / f"{number}.txt").write_text("word")
    asked = {"partition": {"train": {"seconds": 2.0}, "least_seconds": 1.0}, "begins": True}
    told = {"device": str(device), "speech": str(speech)}
    for node in (told, {**told, "channel": 0}):
        assert ask(protocol.DESCRIBE, asked, node=node).has_error()
    reply = ask(protocol.DESCRIBE, asked, node={**told, "channel": 1})
    assert protocol.text(reply.content)["utterances"] == 2


def test_an_error_is_told_in_the_devices_own_log_only(ask, folders):
    (folders[0] / "train.jsonl").write_text("nothing that Lhotse reads: anna's secret\n")
    reply = ask(protocol.DESCRIBE)
    assert reply.has_error()
    kind, rest = protocol.failure(reply).split(" ", 1)
    assert rest == "on the device; its errors.log says more"
    assert kind.endswith("Error") and kind.isidentifier()
    log = (folders[0] / "errors.log").read_text()
    assert log.startswith("query.describe: Traceback")
    assert kind in log


def test_a_message_of_another_kind_is_an_error(ask):
    with pytest.raises(ValueError, match="No query function registered with name 'secrets'"):
        ask("query.secrets")


def test_one_message_at_a_time_works_on_a_device(ask, folders):
    """A worker that a killed run left behind may still be writing."""
    replies = []
    with locked(folders[0] / MODELS):
        thread = threading.Thread(target=lambda: replies.append(ask(protocol.DESCRIBE)))
        thread.start()
        time.sleep(0.3)
        assert replies == []
        other_device = {"device": str(folders[1])}
        assert not ask(protocol.DESCRIBE, node=other_device).has_error()
    thread.join(10)
    assert not replies[0].has_error()


def test_a_run_that_ends_before_it_installs_changes_nothing_for_the_owner(
    ask, folders, client, speaker, generic, description
):
    """Another G, of another seed, whose units have another order: P_s of it, and then nothing."""
    audio = [Path(cut.recording.sources[0].source) for cut in client.test]

    def heard() -> tuple[str, str, list[str]]:
        recognizer = open_recognizer(folders[0])
        model = sha256(recognizer._module.state_dict())
        return recognizer.about, model, [recognizer.transcribe(path) for path in audio]

    def personalize(model, about) -> None:
        settings = PersonalSettings(epochs=1, batch_size=4, learning_rate=0.05)
        said = {
            "description": about.to_json(),
            "generation": sha256(model),
            "seed": 3,
            "round": 1,
            "settings": settings.model_dump(mode="json"),
            "start": None,
        }
        reply = ask(protocol.PERSONALIZE, said, generic=protocol.pack(model))
        assert not reply.has_error(), (folders[0] / "errors.log").read_text()

    def install(model, choose) -> None:
        said = {"model": sha256(model), "choose": choose}
        assert not ask(protocol.INSTALL, said, model=protocol.pack(model)).has_error()

    personalize(generic, description)
    install(moved(generic, 1), [0.5])
    personal, base = speaker.personal(), speaker.store.get(BASE)
    mix = {n: (0.5 * personal[n].double() + 0.5 * base[n].double()).float() for n in base}
    before = heard()
    assert before[:2] == ("0.5 * P_s + 0.5 * M_s", sha256(mix))

    personalize(moved(generic, 2), reversed_words(description))
    assert speaker.store.hash("generic") == sha256(moved(generic, 2))
    assert heard() == before
    install(moved(generic, 3), [0.5])
    assert heard()[1] != before[1]
    speaker.store.rollback("recognizer")
    assert heard() == before


def moved(model, seed: int):
    draw = torch.Generator().manual_seed(seed)
    return {n: t + 0.01 * torch.randn(t.shape, generator=draw) for n, t in model.items()}


def test_an_m_s_that_is_here_need_not_come_once_more(ask, folders, speaker, generic, description):
    """Killed before it answered, a device is asked without it; another one it lacks."""
    speaker.receive_generic(description.to_json(), generic)
    model = moved(generic, 1)
    said = {"model": sha256(model), "held": False}
    lacking = ask(protocol.INSTALL, said)
    assert protocol.lacks(lacking)
    assert "is not here, and did not come along" in (folders[0] / "errors.log").read_text()
    for brought in ({"model": protocol.pack(model)}, {}):
        reply = ask(protocol.INSTALL, said, **brought)
        assert protocol.text(reply.content) == {"installed": sha256(model)}
    reply = ask(protocol.INSTALL, {"model": sha256(generic), "held": True})
    assert protocol.text(reply.content) == {"installed": sha256(generic)}


def test_the_plain_routes_are_flowers(ask, speaker, generic, description):
    """One ArrayRecord each way with equal keys, metrics, and what Flower's strategies send."""
    settings = PersonalSettings(epochs=1, batch_size=4)
    said = {
        "description": description.to_json(),
        "seed": 3,
        "settings": settings.model_dump(mode="json"),
    }
    content = RecordDict(
        {
            "arrays": protocol.pack(generic),
            "config": ConfigRecord({**protocol.write_text(said), "server-round": 4}),
        }
    )
    reply = ask(protocol.PLAIN_TRAIN, content=content)
    expected, loss = speaker.improve(generic, description, settings, 3, 4, 0.0)
    assert sha256(protocol.unpack(reply.content["arrays"])) == sha256(expected)
    assert dict(reply.content["metrics"]) == {"train_loss": loss, "num-examples": 9}
    content["config"]["proximal-mu"] = 50.0
    pulled = ask(protocol.PLAIN_TRAIN, content=content)
    held = speaker.improve(generic, description, settings, 3, 4, 50.0)[0]
    assert sha256(protocol.unpack(pulled.content["arrays"])) == sha256(held) != sha256(expected)
    judged = ask(protocol.PLAIN_EVALUATE, content=content).content["metrics"]
    counts = speaker.model_errors(generic, description)
    assert judged["word_error_rate"] == pytest.approx(counts.errors.sum() / counts.words.sum())
    assert judged["num-examples"] == len(counts.words)


def test_another_model_than_is_said_changes_nothing(ask, folders, speaker, generic, description):
    """What was sent is compared before anything is kept, as a whole and as diffs."""
    other = {name: tensor + 1 for name, tensor in generic.items()}
    made, before = budget.make(generic, other), speaker.store.state()
    said = {
        "description": {"name": "another"},
        "generation": "ab" * 32,
        "seed": 3,
        "round": 1,
        "settings": PersonalSettings(epochs=1, batch_size=4).model_dump(mode="json"),
        "start": None,
    }
    for sent in (protocol.pack(other), ArrayRecord(), protocol.pack_diffs([made.data])):
        reply = ask(protocol.PERSONALIZE, said, generic=sent)
        assert protocol.failure(reply).startswith("ModelError on the device")
        for kept in (protocol.pack(other), protocol.pack_diffs([made.data])):
            reply = ask(protocol.INSTALL, {"model": "cd" * 32}, model=kept)
            assert protocol.failure(reply).startswith("ModelError on the device")
    log = (folders[0] / "errors.log").read_text()
    assert f"expected the generic model {'ab' * 6}, {sha256(made.result)[:12]} was sent" in log
    assert f"expected the base model {'cd' * 6}, {sha256(other)[:12]} was sent" in log
    assert speaker.store.state() == before


@pytest.mark.parametrize("diffs", [False, True])
def test_what_is_no_model_of_its_description_changes_nothing(
    ask, folders, speaker, generic, description, diffs
):
    """Weights of another architecture, and one that is no number."""
    broken = {name: tensor.clone() for name, tensor in generic.items()}
    next(iter(broken.values())).view(-1)[0] = float("nan")
    other = {name: tensor + 1 for name, tensor in generic.items()}
    cases = [(other, "tdnn-small")] if diffs else [(other, "tdnn-small"), (broken, None)]
    before = speaker.store.state()
    for model, name in cases:
        about = description.to_json()
        said = {
            "description": {**about, "name": name or about["name"]},
            "generation": sha256(model),
            "seed": 3,
            "round": 1,
            "settings": {},
            "start": None,
        }
        made = budget.make(generic, model) if diffs else None
        sent = protocol.pack(model) if made is None else protocol.pack_diffs([made.data])
        said["generation"] = said["generation"] if made is None else sha256(made.result)
        reply = ask(protocol.PERSONALIZE, said, generic=sent)
        assert protocol.failure(reply).startswith("ModelError on the device")
        assert speaker.store.state() == before
        assert not speaker.store.file(said["generation"]).exists()


KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def released(line: str, sequence: int, model, about) -> RecordDict:
    """A `train.personalize` with a signed release."""
    name = sha256(model)
    what = name, signing.hash_of(about), signing.NO_BASE
    release = signing.Release(line, sequence, *what, "2026-01-31T12:00:00Z")
    said = {
        "description": about,
        "generation": name,
        "seed": 3,
        "round": 1,
        "settings": PersonalSettings(epochs=1, batch_size=4).model_dump(mode="json"),
        "start": None,
    }
    content = protocol.content(said, generic=protocol.pack(model))
    statement = signing.sign_release(release, KEY).decode()
    content[protocol.SIGNED] = protocol.write_text({protocol.SIGNED: [statement]})
    return content


def test_a_signed_release_of_another_line_is_refused(ask, folders, speaker, generic, description):
    Trust(folders[0]).pin(signing.public(KEY))
    new, old, about = moved(generic, 1), moved(generic, 2), description.to_json()
    content = released("releases", 3, new, about)
    assert not ask(protocol.PERSONALIZE, content=content).has_error()
    before = speaker.store.state()
    reply = ask(protocol.PERSONALIZE, content=released("old-releases", 1, old, about))
    assert protocol.failure(reply).startswith("SignatureError on the device")
    log = (folders[0] / "errors.log").read_text()
    assert "line: signed for 'old-releases', and this device follows 'releases'" in log
    assert speaker.store.state() == before and before["generic"] == sha256(new)


def reversed_words(description) -> ModelDescription:
    blank, *units = description.units.vocabulary
    return replace(description, units=Units("words", [blank, *units[::-1]]))


def test_a_signed_release_comes_with_its_own_words(ask, folders, speaker, generic, description):
    Trust(folders[0]).pin(signing.public(KEY))
    content = released("releases", 1, generic, description.to_json())
    before = speaker.store.state()
    said = protocol.text(content) | {"description": reversed_words(description).to_json()}
    reply = ask(
        protocol.PERSONALIZE, content=RecordDict({**content, "text": protocol.write_text(said)})
    )
    assert protocol.failure(reply).startswith("SignatureError on the device")
    assert "description: signed for" in (folders[0] / "errors.log").read_text()
    assert speaker.store.state() == before
    assert not ask(protocol.PERSONALIZE, content=content).has_error()


@pytest.mark.parametrize("kind", [protocol.PLAIN_TRAIN, protocol.PLAIN_EVALUATE])
def test_what_is_only_tried_out_changes_nothing(ask, folders, speaker, generic, description, kind):
    """Its words are those of its message, and the device's own are what they were."""
    Trust(folders[0]).pin(signing.public(KEY))
    settings = PersonalSettings(epochs=1, batch_size=4).model_dump(mode="json")
    about = reversed_words(description).to_json()
    said = protocol.write_text({"description": about, "seed": 3, "settings": settings})
    config = ConfigRecord({**said, "server-round": 1})
    before = speaker.store.state()
    content = RecordDict({"arrays": protocol.pack(generic), "config": config})
    assert not ask(kind, content=content).has_error(), (folders[0] / "errors.log").read_text()
    assert speaker.store.state() == before
    assert before["description"] == description.to_json() != about


@pytest.mark.parametrize("chained", [False, True])
def test_a_device_goes_back_to_what_it_held_with_its_description(
    ask, speaker, generic, description, chained
):
    other = {name: tensor + 1 for name, tensor in generic.items()}
    made, about = budget.make(generic, other), description.to_json()
    speaker.receive_generic(about, generic)
    said = {
        "description": (after := reversed_words(description).to_json()),
        "generation": sha256(made.result),
        "seed": 3,
        "round": 1,
        "settings": {},
        "start": None,
    }
    if chained:
        between = budget.make(generic, {name: tensor + 2 for name, tensor in generic.items()})
        made = budget.make(between.result, other)
        said["generation"] = sha256(made.result)
    diffs = [between.data, made.data] if chained else [made.data]
    ask(protocol.PERSONALIZE, said, generic=protocol.pack_diffs(diffs))
    assert speaker.store.hash("generic") == said["generation"]
    assert speaker.store.state()["description"] == after != about
    assert speaker.store.rollback("generic") == sha256(generic)
    assert speaker.store.state()["description"] == about
