"""A run on boxes without a network: who takes part, who is late, who does not come back."""

import json
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from boxes import Boxes
from federations import GENERIC_SPEAKERS, settings, simulate
from flwr.app import Context, RecordDict
from owners import hand, rows

from fedspeech import config, protocol, tensors
from fedspeech.corpus.partition import pseudonym
from fedspeech.device.personal import ALPHA, open_store
from fedspeech.errors import ConfigError, FedSpeechError, RunError
from fedspeech.tensors import sha256
from server import fleet, improve, superlink
from server.app import app as server

OWNERS = ("t03", "t04", "t05", "t06")
NAMES = {speaker: pseudonym(0, speaker) for speaker in OWNERS}
LATE = NAMES["t05"]


@pytest.fixture(scope="module")
def corpus(tone_corpus, tmp_path_factory):
    return tone_corpus(tmp_path_factory.mktemp("tones"), GENERIC_SPEAKERS + 4, per_round=4)


@pytest.fixture(scope="module")
def speech(corpus, tmp_path_factory):
    """A folder for each owner, by pseudonym."""
    folder = tmp_path_factory.mktemp("speech")
    return {
        name: hand(folder / name, [row for row in rows(corpus) if row["speaker"] == speaker])
        for speaker, name in NAMES.items()
    }


@pytest.fixture
def clock(monkeypatch):
    """Nobody waits: `jump()` lets an hour go by."""
    offset = [0.0]
    ours = SimpleNamespace(
        monotonic=lambda: time.monotonic() + offset[0], sleep=lambda seconds: None
    )
    monkeypatch.setattr(fleet, "time", ours)
    monkeypatch.setattr(fleet, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(superlink, "nodes", Boxes.all_nodes)

    def jump():
        offset[0] += 3600.0

    return jump


@pytest.fixture
def experiment(corpus):
    def make(deployment=None, **federation):
        asked = {"boxes": 4, "wait": 1.0, "deadline": 600.0, **(deployment or {})}
        chosen = {"bases": ["mean", "kbest"], "deployment": asked, **federation}
        return settings(
            corpus, federation=chosen, engine={"grid": "deployment", "superlink": "none"}
        )

    return make


def deploy(experiment, boxes, folder):
    path = folder.parent / f"{folder.name}.toml"
    path.write_text(config.dump(experiment))
    asked = {"experiment": str(path), "out": str(folder), "resume": True}
    server(boxes, Context(1, 1, {}, RecordDict(), asked))
    return json.loads((folder / "results.json").read_text())


def simulated(corpus, folder, **federation):
    found = settings(corpus, federation={"bases": ["mean", "kbest"], **federation})
    return json.loads((simulate(found, folder) / "results.json").read_text())


def personal(folder, speaker):
    return sha256(tensors.read(folder / "models" / "personal" / f"{speaker}.safetensors"))


def test_boxes_give_what_simulated_devices_give(corpus, speech, experiment, clock, tmp_path):
    found = deploy(experiment(), Boxes(speech, tmp_path / "devices"), tmp_path / "run")
    expected = simulated(corpus, tmp_path / "simulated")
    for key in ("generic", "personal", "table", "chosen_alpha", "per_speaker", "failures"):
        assert found[key] == expected[key], key
    assert not (tmp_path / "run" / "spool").exists()


def test_a_run_that_fails_before_it_begins_leaves_nothing_behind(
    speech, experiment, clock, tmp_path
):
    asked = experiment()
    generic = asked.generic.model_copy(update={"model": "/no/such.safetensors"})
    with pytest.raises(FedSpeechError, match="/no/such"):
        deploy(
            asked.model_copy(update={"generic": generic}), Boxes(speech, tmp_path), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_each_owner_has_what_the_device_chose(speech, experiment, clock, tmp_path):
    found = deploy(experiment(), Boxes(speech, tmp_path / "devices"), tmp_path / "run")
    for name in speech:
        store = open_store(tmp_path / "devices" / name)
        chosen = found["chosen_alpha"]["alphas"][name]
        assert store.state()[ALPHA] == chosen
        assert store.hash("base") != store.hash("generic")


def test_where_the_server_mixes_the_mix_is_what_is_used(speech, experiment, clock, tmp_path):
    boxes = Boxes(speech, tmp_path / "devices")
    deploy(experiment(mix_on="server"), boxes, tmp_path / "run")
    for name in speech:
        assert open_store(tmp_path / "devices" / name).state()[ALPHA] == 0


@pytest.mark.parametrize("late", ["next-round", "drop"])
def test_a_box_that_is_late_is_asked_again(corpus, speech, experiment, clock, tmp_path, late):
    """Where late answers count, for what it has finished meanwhile; else for a new fine-tuning."""
    boxes = Boxes(
        speech,
        tmp_path / "devices",
        lambda speaker, message: (
            speaker == LATE
            and message.metadata.message_type == protocol.PERSONALIZE
            and message.metadata.group_id == "1"
        ),
    )
    boxes.idle = clock
    go_on = {"rounds": 2, "continue_from": {"base": "mean", "alpha": 0.5}}
    found = deploy(experiment({"late": late}, **go_on), boxes, tmp_path / "run")
    (failure,) = found["failures"]
    assert (failure["speaker"], failure["round"]) == (LATE, 1)
    assert failure["reason"] == "no answer within 600 s, still at work"
    first, second = json.loads((tmp_path / "run" / "participation.json").read_text())["rounds"]
    assert set(first["asked"]) == set(second["asked"]) == set(speech)
    assert (first["absent"], second["absent"]) == ({LATE: "after the deadline"}, {})
    arrived = {LATE: 1} if late == "next-round" else {}
    assert (first["arrived"], second["arrived"]) == ({}, arrived)
    counts = [(row["in_time"], row["late"]) for row in found["participation"]["rounds"]]
    assert counts == [(3, 1), (4 - len(arrived), 0)]
    assert {row["speaker"] for row in found["per_speaker"]} == set(speech)
    simulated(corpus, tmp_path / "one round")
    of_the_first = personal(tmp_path / "one round", LATE)
    assert (personal(tmp_path / "run", LATE) == of_the_first) == (late == "next-round")


def test_a_run_begins_without_a_box_that_does_not_come(speech, experiment, clock, tmp_path, caplog):
    boxes = Boxes(speech, tmp_path / "devices")
    boxes.offline = {LATE}
    boxes.idle = clock
    with caplog.at_level("WARNING", logger="fedspeech"):
        found = deploy(experiment({"wait": 0.1}), boxes, tmp_path / "run")
    assert {row["speaker"] for row in found["per_speaker"]} == set(speech) - {LATE}
    node, since = boxes.node(LATE), "offline since 2026-01-02 03:04:05 UTC"
    called = f"node {node} (box box-{node})"
    assert found["failures"] == [
        {"speaker": called, "round": 0, "message": protocol.DESCRIBE, "reason": since}
    ]
    warned = f"3 of 4 boxes take part (federation.deployment.boxes)\n  {called}: {since}"
    assert warned in caplog.messages
    assert called in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("gone", "reason", "why", "asked"),
    [
        ("revoked", "its key was revoked", "its key was revoked", 3),
        (
            "offline",
            "no answer within 600 s, offline since 2026-01-02 03:04:05 UTC",
            "not available",
            4,
        ),
    ],
)
def test_a_box_that_goes_in_the_middle(
    speech, experiment, clock, tmp_path, gone, reason, why, asked
):
    """Only one that may come back is waited for."""

    def withheld(speaker, message):
        if speaker != LATE or message.metadata.message_type != protocol.PERSONALIZE:
            return False
        getattr(boxes, gone).add(LATE)
        return True

    waited, begin = [], datetime.now(UTC) - timedelta(seconds=1)
    boxes = Boxes(speech, tmp_path / "devices", withheld)
    boxes.idle = lambda: (waited.append(LATE), clock())
    found = deploy(experiment(), boxes, tmp_path / "run")
    (failure,) = found["failures"]
    assert (failure["speaker"], failure["reason"]) == (LATE, reason)
    assert bool(waited) == (gone == "offline")
    (row,) = found["participation"]["rounds"]
    assert (row["asked"], row["in_time"], row["late"], row["not_available"]) == (asked, 3, 0, 1)
    assert found["participation"]["never"] == [{"speaker": LATE, "why": {why: 1}}]
    (one,) = json.loads((tmp_path / "run" / "participation.json").read_text())["rounds"]
    assert one["absent"] == {LATE: why}
    assert (LATE in one["asked"]) == (gone == "offline")
    # The clock jumps by an hour where somebody is waited for.
    assert (one["asked"].get(LATE, 0.0) > 3600.0) == (gone == "offline")
    others = [seconds for speaker, seconds in one["asked"].items() if speaker != LATE]
    assert all(0 < seconds <= one["seconds"] for seconds in others)
    assert row["began"] == one["began"]
    if not waited:
        assert begin <= datetime.fromisoformat(one["began"]) <= datetime.now(UTC)


def with_a_copy(speech, devices):
    """The boxes, two of which say that they are one, and the node of that which is it."""
    boxes = Boxes(speech, devices)
    boxes.clone(LATE)
    return boxes, boxes.node(LATE)


def test_of_two_boxes_that_say_they_are_one_none_takes_part(
    speech, experiment, clock, tmp_path, caplog
):
    """A card that was copied, or a name; the others go on."""
    boxes, node = with_a_copy(speech, tmp_path / "devices")
    with caplog.at_level("WARNING", logger="fedspeech"):
        found = deploy(experiment(), boxes, tmp_path / "run")
    assert {row["speaker"] for row in found["per_speaker"]} == set(speech) - {LATE}
    both = (
        f"node {node} (box box-{node}) and node 105 (box box-105) say that they are speaker {LATE}"
    )
    assert f"{both}; all are left out" in caplog.messages
    assert [(f["speaker"], f["reason"]) for f in found["failures"]] == [
        (f"node {node} (box box-{node})", both),
        ("node 105 (box box-105)", both),
    ]


def begin(settings, speech, folder):
    """A run that is stopped when every box has sent its P_s."""

    class Stopped(Exception):
        pass

    def stop(speaker, message):
        if message.metadata.message_type == protocol.EVALUATE:
            raise Stopped
        return False

    with pytest.raises(Stopped):
        deploy(settings, Boxes(speech, folder / "devices", stop), folder / "run")


def test_a_resumed_run_keeps_the_box_that_it_began_with(
    speech, experiment, clock, tmp_path, caplog
):
    begin(experiment(), speech, tmp_path)
    boxes, node = with_a_copy(speech, tmp_path / "devices")
    with caplog.at_level("WARNING", logger="fedspeech"):
        found = deploy(experiment(), boxes, tmp_path / "run")
    assert {row["speaker"] for row in found["per_speaker"]} == set(speech)
    assert [failure["speaker"] for failure in found["failures"]] == ["node 105 (box box-105)"]
    assert any(m.endswith(f"; node {node} (box box-{node}) is kept") for m in caplog.messages)
    assert json.loads((tmp_path / "run" / "boxes.json").read_text())[LATE] == str(node)


def test_a_copy_does_not_take_the_place_of_the_box_that_a_run_began_with(
    speech, experiment, clock, tmp_path, caplog
):
    """It is away, and comes back later."""
    begin(experiment(), speech, tmp_path)
    boxes, node = with_a_copy(speech, tmp_path / "devices")
    boxes.offline = {node}
    boxes.idle = clock
    with caplog.at_level("WARNING", logger="fedspeech"):
        found = deploy(experiment(), boxes, tmp_path / "run")
    assert {row["speaker"] for row in found["per_speaker"]} == set(speech) - {LATE}
    assert any(m.endswith(f"; node {node} (box box-{node}) is kept") for m in caplog.messages)
    assert json.loads((tmp_path / "run" / "boxes.json").read_text())[LATE] == str(node)


def use_meanwhile(experiment, speech, folder):
    """Another run on some boxes, with an epoch more."""
    other = experiment({"boxes": len(speech)})
    longer = other.personal.model_copy(update={"epochs": 1 + other.personal.epochs})
    between = other.model_copy(update={"personal": longer})
    deploy(between, Boxes(speech, folder / "devices"), folder / "between")


def test_a_run_goes_on_although_another_has_used_its_boxes(
    corpus, speech, experiment, clock, tmp_path, caplog
):
    """They are asked once more for what they do not hold any more; the others are not."""
    begin(experiment(), speech, tmp_path)
    some = {name: speech[name] for name in (LATE, NAMES["t06"])}
    use_meanwhile(experiment, some, tmp_path)
    boxes = Boxes(speech, tmp_path / "devices")
    with caplog.at_level("WARNING", logger="fedspeech"):
        found = deploy(experiment(), boxes, tmp_path / "run")
    again = {speaker for speaker, kind, _ in boxes.asked if kind == protocol.PERSONALIZE}
    assert again == set(some)
    warned = [
        m for m in caplog.messages if m.endswith("holds another P_s than it has sent: asked again")
    ]
    assert len(warned) == len(some)
    expected = simulated(corpus, tmp_path / "simulated")
    for key in ("generic", "personal", "table", "chosen_alpha", "per_speaker", "failures"):
        assert found[key] == expected[key], key


def test_boxes_that_lack_what_a_round_goes_on_from_begin_with_g(
    speech, experiment, clock, tmp_path, caplog
):
    """Another run has used one of them after the first round had ended."""

    class Stopped(Exception):
        pass

    def stop(speaker, message):
        if (
            message.metadata.message_type == protocol.PERSONALIZE
            and message.metadata.group_id == "2"
        ):
            raise Stopped
        return False

    go_on = {"rounds": 2, "continue_from": {"base": "mean", "alpha": 0.5}}
    with pytest.raises(Stopped):
        deploy(experiment(**go_on), Boxes(speech, tmp_path / "devices", stop), tmp_path / "run")
    use_meanwhile(experiment, {LATE: speech[LATE]}, tmp_path)
    boxes = Boxes(speech, tmp_path / "devices")
    with caplog.at_level("WARNING", logger="fedspeech"):
        found = deploy(experiment(**go_on), boxes, tmp_path / "run")
    assert f"speakers {LATE} lack what they went on from: from G on" in caplog.messages
    assert found["failures"] == []
    assert {row["speaker"] for row in found["per_speaker"]} == set(speech)


def test_a_box_that_was_late_with_m_s_takes_part_in_the_next_round(
    speech, experiment, clock, tmp_path, caplog
):
    """It has installed what the server takes it not to have."""

    def withheld(speaker, message):
        about = message.metadata
        return (speaker, about.message_type, about.group_id) == (LATE, protocol.INSTALL, "2")

    boxes = Boxes(speech, tmp_path / "devices", withheld)
    boxes.idle = clock
    go_on = {"rounds": 3, "continue_from": {"base": "mean", "alpha": 0.5}}
    with caplog.at_level("WARNING", logger="fedspeech"):
        found = deploy(experiment(**go_on), boxes, tmp_path / "run")
    assert [(f["speaker"], f["message"]) for f in found["failures"]] == [(LATE, protocol.INSTALL)]
    assert f"speakers {LATE} lack what they went on from: from G on" in caplog.messages
    assert {row["speaker"] for row in found["per_speaker"]} == set(speech)


def test_too_few_boxes_are_told_with_their_reasons(speech, experiment, clock, tmp_path):
    boxes = Boxes({**speech, LATE: tmp_path}, tmp_path / "devices")
    boxes.offline = {NAMES["t03"], NAMES["t04"]}
    with pytest.raises(RunError, match="1 boxes are there and usable, expected at least 2") as told:
        deploy(experiment({"wait": 0.1}), boxes, tmp_path / "run")
    assert "CorpusError on the device" in str(told.value)
    for name in boxes.offline:
        node = boxes.node(name)
        assert f"\n  node {node} (box box-{node}): offline since" in str(told.value)


def test_a_resumed_run_is_with_the_boxes_of_its_beginning(
    corpus, speech, experiment, clock, tmp_path
):
    """One is gone for good after it has sent its P_s, and a stranger has come."""
    some = {name: path for name, path in speech.items() if name != NAMES["t03"]}

    begin(experiment({"boxes": 3}), some, tmp_path)
    second = Boxes(speech, tmp_path / "devices")
    second.offline = {LATE}
    second.idle = clock
    found = deploy(experiment({"boxes": 3}), second, tmp_path / "run")
    assert protocol.PERSONALIZE not in {kind for _, kind, _ in second.asked}
    assert {row["speaker"] for row in found["per_speaker"]} == set(some) - {LATE}
    stranger, gone = found["failures"]
    assert stranger["speaker"].startswith(f"node {second.node(NAMES['t03'])} ")
    assert stranger["reason"] == "came after the run had begun"
    assert (gone["speaker"], gone["message"]) == (LATE, protocol.EVALUATE)
    known = deploy(experiment({"boxes": 3}), Boxes(some, tmp_path / "other"), tmp_path / "whole")
    whole = {row["speaker"]: row for row in known["per_speaker"]}
    for row in found["per_speaker"]:
        assert row == whole[row["speaker"]]


def test_a_box_that_is_believed_to_be_there_counts_once(
    speech, experiment, clock, tmp_path, caplog
):
    """A SuperLink that was restarted calls a box online for a while that died meanwhile."""
    two = {name: speech[name] for name in (NAMES["t04"], LATE)}
    begin(experiment({"boxes": 2}), two, tmp_path)
    second = Boxes(two, tmp_path / "devices", lambda speaker, message: speaker == LATE)
    second.idle = clock
    with caplog.at_level("WARNING", logger="fedspeech"):
        found = deploy(experiment({"boxes": 2}), second, tmp_path / "run")
    assert [row["speaker"] for row in found["per_speaker"]] == [NAMES["t04"]]
    assert [(f["speaker"], f["message"]) for f in found["failures"]] == [(LATE, protocol.EVALUATE)]
    assert any(m.startswith(f"speaker {LATE} is not back yet: no answer") for m in caplog.messages)


def test_a_strategy_that_wants_more_boxes_than_there_are_does_not_wait_for_them(
    speech, experiment, clock, tmp_path, monkeypatch
):
    monkeypatch.setattr(improve, "run", lambda *_: pytest.fail("waits for ever"))
    boxes = Boxes({LATE: speech[LATE]}, tmp_path / "devices")
    asked = experiment({"boxes": 1}, improve={"class": "flwr.serverapp.strategy:FedAvg"})
    with pytest.raises(ConfigError, match="FedAvg wants more speakers than the 1 that are there"):
        deploy(asked, boxes, tmp_path / "run")
    assert {kind for _, kind, _ in boxes.asked} == {protocol.DESCRIBE}


def test_rounds_that_improve_g_are_told_of_as_well(speech, experiment, clock, tmp_path):
    def withheld(speaker, message):
        return speaker == LATE and message.metadata.message_type == protocol.PLAIN_TRAIN

    boxes = Boxes(speech, tmp_path / "devices", withheld)
    boxes.idle = clock
    improve = {"class": "flwr.serverapp.strategy:FedAvg"}
    begin = datetime.now(UTC) - timedelta(seconds=1)
    found = deploy(experiment(improve=improve, bases=["mean"]), boxes, tmp_path / "run")
    first, second = found["participation"]["rounds"]
    keys = ("stage", "round", "asked", "in_time", "late", "not_sampled")
    assert [first[key] for key in keys] == ["improve", 1, 4, 3, 1, 0]
    assert [second[key] for key in keys] == ["personalization", 1, 4, 4, 0, 0]
    assert begin < datetime.fromisoformat(second["began"])
    one, _ = json.loads((tmp_path / "run" / "participation.json").read_text())["rounds"]
    assert one["absent"] == {LATE: "after the deadline"}
    assert one["asked"][LATE] > 3600.0
    assert ">improve<" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("came", "expected"), [(True, [True, False]), (False, [True, False, True])]
)
def test_a_box_that_goes_away_is_sent_g_once_more_only_where_it_lacks_it(
    corpus, speech, experiment, clock, tmp_path, came, expected
):
    """It goes before it answers, or before the question has come."""
    carried: list[bool] = []
    answered: list[str] = []
    looks: list[None] = []

    def withheld(speaker, message):
        if (speaker, message.metadata.message_type) != (LATE, protocol.PERSONALIZE):
            return False
        answered.append(speaker)
        if gone := came and len(answered) == 1:
            boxes.offline.add(LATE)
        return gone

    def look():
        looks.append(None)
        if len(looks) == 2 + len(speech):  # it is looked as well while others are asked
            boxes.offline.clear()

    class Watched(Boxes):
        def push_messages(self, messages):
            (message,) = messages
            about = message.metadata
            if (about.dst_node_id, about.message_type) == (self.node(LATE), protocol.PERSONALIZE):
                carried.append(protocol.GENERIC in message.content)
                if len(carried) == 1 and not came:
                    self.offline.add(LATE)
            return super().push_messages([message])

    boxes = Watched(speech, tmp_path / "devices", withheld)
    boxes.idle = look
    found = deploy(experiment(bases=["mean"]), boxes, tmp_path / "run")
    assert carried == expected
    assert found["failures"] == []
    simulated(corpus, tmp_path / "simulated", bases=["mean"])
    assert personal(tmp_path / "run", LATE) == personal(tmp_path / "simulated", LATE)
