"""A cohort's stack on the devices' own folders."""

import errno
import re
import shutil
from pathlib import Path

import pytest
import torch
from federations import apart
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import clients.cohort
from clients import speaker as speakers
from clients.app import app
from clients.cohort import prepare
from fedspeech import protocol
from fedspeech.config.training import PersonalSettings
from fedspeech.device.store import DIFFERENCE, VALIDATION
from fedspeech.errors import DiskError
from fedspeech.tensors import sha256

SETTINGS = PersonalSettings(epochs=2, batch_size=4, precision="fp32").model_dump(mode="json")


@pytest.fixture(autouse=True, scope="module")
def identity():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.fixture
def cohort(folders, tmp_path, description, generic):
    """Contexts and messages of a cohort, on copies of the device folders under a name."""

    def make(name: str):
        shutil.copytree(folders[0].parent, tmp_path / name)
        said = {
            **{"description": description.to_json(), "generation": sha256(generic)},
            **{"round": 1, "seed": 0, "settings": SETTINGS, "start": None},
        }
        members = []
        for number, folder in enumerate(folders):
            node = {"device": str(tmp_path / name / folder.name)}
            content = protocol.content(said, generic=protocol.pack(generic))
            message = Message(content, number + 1, protocol.PERSONALIZE, group_id="1")
            members.append((Context(1, number + 1, node, RecordDict(), {}), message))
        return members

    return make


def kept(member) -> dict[str, dict]:
    store = speakers.open_folder(Path(str(member[0].node_config["device"]))).store
    return {role: store.get(role) for role in (DIFFERENCE, VALIDATION)}


def hashes(member) -> list[str]:
    return [sha256(model) for model in kept(member).values()]


def test_each_device_keeps_what_it_would_have_come_to_alone(cohort, generic):
    together, alone = cohort("together"), cohort("alone")
    prepare(together)
    for ours, theirs in zip(together, alone, strict=True):
        expected = protocol.text(app(theirs[1], theirs[0]).content)
        before = hashes(ours)
        reply = app(ours[1], ours[0])  # it has finished already, and only tells
        said = protocol.text(reply.content)
        assert hashes(ours) == before
        assert sha256(protocol.unpack(reply.content["difference"])) == before[0]
        assert said["losses"] == pytest.approx(expected["losses"], rel=1e-3)
        assert said["skipped"] == expected["skipped"]
        begins = {DIFFERENCE: {n: torch.zeros_like(t) for n, t in generic.items()}}
        for role, model in kept(theirs).items():
            assert apart(kept(ours)[role], model, begins.get(role, generic)) < 0.1
    assert hashes(together[0]) != hashes(together[1])


def test_who_answered_before_an_interruption_is_in_the_stack_again(cohort):
    whole, resumed = cohort("whole"), cohort("resumed")
    prepare(whole)
    # The second device had finished, and its answer is known; the first was lost.
    finished = Path(str(whole[1][0].node_config["device"])) / "models"
    shutil.copytree(finished, Path(str(resumed[1][0].node_config["device"])) / "models")
    speakers.open_folder.cache_clear()
    prepare([resumed[0], (resumed[1][0], None)])
    assert hashes(resumed[0]) == hashes(whole[0])
    alone = cohort("alone")
    prepare([alone[0], (alone[1][0], None)])  # a second device that never took part
    assert hashes(alone[0]) != hashes(whole[0])
    with pytest.raises(Exception, match="holds no difference model"):
        kept(alone[1])


def test_what_is_finished_is_not_fine_tuned_again(cohort, monkeypatch):
    members = cohort("twice")
    prepare(members)
    before = [hashes(member) for member in members]
    monkeypatch.setattr("clients.cohort.fine_tune_together", None)
    prepare(members)
    assert [hashes(member) for member in members] == before


def second_round(members):
    """The members' first round finished and M_s installed; what is asked of them next."""
    prepare(members)
    asked = []
    for context, message in members:
        me = speakers.open_folder(Path(str(context.node_config["device"])))
        start = {"installed": me.install(None), "alpha": 0.5}
        said = {**protocol.text(message.content), "round": 2, "start": start}
        kind, node = protocol.PERSONALIZE, message.metadata.dst_node_id
        asked.append((context, Message(protocol.content(said), node, kind, group_id="2")))
    return asked


@pytest.mark.faults
def test_killed_between_two_devices_of_a_later_round_it_comes_to_the_same(cohort, monkeypatch):
    whole, killed = second_round(cohort("whole")), second_round(cohort("killed"))
    prepare(whole)
    keep, kept_by = speakers.Speaker.keep_tuned, []

    def once(me, *rest):
        if kept_by:
            raise KeyboardInterrupt
        kept_by.append(me)
        keep(me, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(speakers.Speaker, "keep_tuned", once)
        with pytest.raises(KeyboardInterrupt):
            prepare(killed)
    prepare(killed)
    assert [hashes(member) for member in killed] == [hashes(member) for member in whole]


def speaks_of_zebras(folder: Path) -> None:
    lines = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(re.sub(r'"text": "[^"]*"', '"text": "zebra"', lines))


def lost_its_audio(folder: Path) -> None:
    lines = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(re.sub(r'/[^"]*[.]wav', "/nowhere/a.wav", lines))


def is_no_device(folder: Path) -> None:
    (folder / "device.json").write_text("{")


def is_gone(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("damage", [speaks_of_zebras, lost_its_audio, is_no_device, is_gone])
def test_who_cannot_be_fine_tuned_says_so_when_asked_and_the_others_go_on(cohort, damage):
    members, expected = cohort("broken"), cohort("expected")
    damage(Path(str(members[0][0].node_config["device"])))
    speakers.open_folder.cache_clear()
    prepare(members)
    assert app(members[0][1], members[0][0]).has_error()
    assert not app(members[1][1], members[1][0]).has_error()
    prepare(expected[1:])
    assert hashes(members[1]) == hashes(expected[1])


def test_whose_notes_are_damaged_is_left_out_although_it_is_not_asked(cohort):
    members, expected = cohort("broken"), cohort("expected")
    models = Path(str(members[0][0].node_config["device"])) / "models"
    models.mkdir(exist_ok=True)
    (models / "state.json").write_text("{")
    prepare([(members[0][0], None), members[1]])
    prepare(expected[1:])
    assert hashes(members[1]) == hashes(expected[1])


@pytest.mark.parametrize("step", ["keep_tuned", "tunings"])
@pytest.mark.parametrize(
    ("error", "ends"),
    [(DiskError("full"), True), (OSError(errno.EMFILE, "many"), True), (OSError("no"), False)],
)
def test_only_what_the_system_may_give_next_time_ends_the_run(
    cohort, monkeypatch, error, ends, step
):
    members = cohort("broken")
    real, broken = getattr(speakers.Speaker, step), Path(str(members[0][0].node_config["device"]))

    def refuse(me, *rest):
        if me.folder == broken:
            raise error
        return real(me, *rest)

    monkeypatch.setattr(speakers.Speaker, step, refuse)
    if ends:
        with pytest.raises(DiskError):
            prepare(members)
        return
    prepare(members)
    assert app(members[0][1], members[0][0]).has_error()
    assert len(kept(members[1])) == 2


@pytest.mark.parametrize(
    ("where", "step"),
    [
        (speakers.Speaker, "tunings"),
        (speakers.Speaker, "keep_tuned"),
        (clients.cohort, "receive"),
        (speakers, "open_folder"),
    ],
)
def test_what_goes_wrong_twice_leaves_nobody_out_of_the_stack(cohort, monkeypatch, where, step):
    members, expected = cohort("broken"), cohort("expected")
    prepare(expected)
    real, failed = getattr(where, step), []

    def fail_twice(*given):
        if len(failed) < 2:
            failed.append(given)
            raise OSError("no")
        return real(*given)

    monkeypatch.setattr(where, step, fail_twice)
    prepare(members)
    monkeypatch.undo()
    assert len(failed) == 2
    assert [hashes(member) for member in members] == [hashes(member) for member in expected]
