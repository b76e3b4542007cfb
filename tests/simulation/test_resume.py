"""A run that was killed goes on from its last finished message and ends with the same bytes."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from commands import going_on
from federations import LONG, Around, assert_same, journaled, results, settings, simulate

from fedspeech import config, protocol
from fedspeech.errors import ModelError, RunError

COMMAND = Path(sys.executable).parent / "fedspeech"
LIMIT = 120
ALL = os.environ.get("FEDSPEECH_FAULTS") == "all"


class Asked(Around):
    """Notes what is really sent: the identity of each message, and its type."""

    def __init__(self, grid):
        super().__init__(grid)
        self.ids, self.kinds = [], []
        self.speakers = {}

    def sent(self, message):
        kind = message.metadata.message_type
        if kind == protocol.DESCRIBE:
            return
        self.kinds.append(kind)
        plain = protocol.TEXT not in message.content
        speaker = self.speakers[message.metadata.dst_node_id]
        self.ids.append("" if plain else protocol.identity(message, speaker))

    def received(self, reply):
        if reply.metadata.message_type == protocol.DESCRIBE:
            self.speakers[reply.metadata.src_node_id] = protocol.text(reply.content)["speaker"]
        return reply


def resume(experiment, folder) -> Asked:
    """Go on in this process; what had to be asked for it."""
    grids = []

    def watch(grid):
        grids.append(Asked(grid))
        return grids[0]

    simulate(experiment, folder, around=watch)
    return grids[0]


def start(experiment, folder: Path) -> subprocess.Popen:
    file = folder.with_suffix(".toml")
    file.write_text(config.dump(experiment))
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [COMMAND, "run", file, "--out", folder, *going_on(folder)], stdout=log, stderr=log
        )


def kill_when(process: subprocess.Popen, moment: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not moment():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(LIMIT)


def chosen_moments(total: int) -> list[int]:
    """After how many answers to kill: while G improves, in each round, while M_s are compared."""
    if ALL:
        return sorted(random.Random(0).sample(range(1, total), 10))
    return [total // 5, total // 2]


@pytest.mark.faults
def test_killed_in_the_middle_of_a_long_run(corpus, undisturbed_long, tmp_path):
    experiment, folder = settings(corpus, federation=LONG), tmp_path / "run"
    total = len(journaled(undisturbed_long))
    process = start(experiment, folder)
    kill_when(process, (folder / "generic.checkpoint").exists)
    for rows in chosen_moments(total):
        process = start(experiment, folder)
        kill_when(process, lambda rows=rows: len(journaled(folder)) >= rows)
        assert not (folder / "results.json").exists()
    known = journaled(folder)
    asked = resume(experiment, folder)
    assert_same(folder, undisturbed_long)
    assert not known & set(asked.ids)
    assert len(asked.ids) == total - len(known)


def races(folder: Path, ended: bool) -> int:
    """How many parts of races, or ends, the journal has answers to."""
    if not journaled(folder):
        return 0
    with sqlite3.connect(folder / "journal.sqlite") as database:
        rows = database.execute(
            "SELECT answer FROM messages WHERE kind = ? AND answer IS NOT NULL",
            [protocol.WORD_ERRORS],
        )
        found = ["decodings" in answer for (answer,) in rows]
    database.close()
    return sum(one == ended for one in found)


@pytest.mark.faults
def test_killed_in_the_middle_of_a_race(corpus, tmp_path):
    """When some candidates have come, and when some races have ended."""
    experiment, folder = settings(corpus, federation={"bases": ["quick"]}), tmp_path / "run"
    straight = simulate(experiment, tmp_path / "straight")
    assert results(straight)["decodings"]["quick"]["used"] > 0
    for ended in (False, True):
        process = start(experiment, folder)
        kill_when(process, lambda ended=ended: races(folder, ended) >= 2)
    known = journaled(folder)
    asked = resume(experiment, folder)
    assert_same(folder, straight)
    assert not known & set(asked.ids)


def test_nothing_is_asked_where_all_is_answered(corpus, undisturbed, undisturbed_long, tmp_path):
    for source, federation in ((undisturbed, {}), (undisturbed_long, LONG)):
        folder = tmp_path / source.parent.name
        shutil.copytree(source, folder)
        (folder / "results.json").unlink()
        asked = resume(settings(corpus, federation=federation), folder)
        assert asked.kinds == []
        assert_same(folder, source)


def changed(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.fixture
def finished(undisturbed, tmp_path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


@pytest.fixture
def first_speaker(undisturbed) -> str:
    return results(undisturbed)["per_speaker"][0]["speaker"]


DAMAGES = ["deleted", "a byte changed", "cut off"]


def inflict(damage: str, path: Path) -> None:
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    elif damage == "a byte changed":
        path.write_bytes(changed(content))
    else:
        path.write_bytes(content[: len(content) // 2])


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_lost_personal_model_is_asked_for_again(
    corpus, undisturbed, finished, first_speaker, damage, caplog
):
    path = finished / "models" / "personal" / f"{first_speaker}.safetensors"
    inflict(damage, path)
    asked = resume(settings(corpus), finished)
    assert asked.kinds == [protocol.PERSONALIZE]
    assert f"{path}: missing or damaged; speaker {first_speaker} is asked again" in caplog.messages
    assert_same(finished, undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("lost", ["*.safetensors", "*"])
def test_a_device_that_lost_its_models_too_trains_again(
    corpus, undisturbed, finished, first_speaker, lost
):
    (finished / "models" / "personal" / f"{first_speaker}.safetensors").unlink()
    for path in (finished / "devices" / first_speaker / "models").glob(lost):
        path.unlink()
    resume(settings(corpus), finished)
    assert_same(finished, undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("role", ["difference", "validation"])
def test_a_device_whose_own_copy_is_damaged_trains_again(
    corpus, undisturbed, finished, first_speaker, role, damage, caplog
):
    models = finished / "devices" / first_speaker / "models"
    path = models / f"{json.loads((models / 'state.json').read_text())[role]}.safetensors"
    whole = path.read_bytes()
    inflict(damage, path)
    asked = resume(settings(corpus), finished)
    assert asked.kinds == [protocol.PERSONALIZE]
    assert f"{path}: missing or damaged; speaker {first_speaker} is asked again" in caplog.messages
    assert_same(finished, undisturbed)
    assert path.read_bytes() == whole


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES[1:])
def test_g_that_is_damaged_where_all_devices_have_it_is_sent_again(
    corpus, undisturbed, finished, damage, caplog
):
    """Its file is one for all of them."""
    (path,) = (finished / "devices" / "pool").glob("*.safetensors")
    held = list(finished.glob(f"devices/*/models/{path.name}"))
    whole = path.read_bytes()
    inflict(damage, path)
    for link in held:  # the copy of the run has files of their own
        link.unlink()
        os.link(path, link)
    asked = resume(settings(corpus), finished)
    assert asked.kinds == [protocol.PERSONALIZE] * len(held)
    assert sum("missing or damaged" in line for line in caplog.messages) == len(held)
    assert_same(finished, undisturbed)
    assert {one.read_bytes() for one in (path, *held)} == {whole}


@pytest.mark.faults
def test_g_that_is_damaged_on_the_server_is_named_and_written_anew(
    corpus, undisturbed, finished, caplog
):
    path = finished / "models" / "generic.safetensors"
    path.write_bytes(changed(path.read_bytes()))
    assert resume(settings(corpus), finished).kinds == []
    assert f"{path}: damaged, or another G; it is written anew" in caplog.messages
    assert_same(finished, undisturbed)


def held_by(folder: Path, number: int = 0) -> tuple[str, dict[str, Path]]:
    """A speaker, and the files that its device has, by their roles."""
    models = sorted(folder.glob("devices/*/models/state.json"))[number].parent
    said = json.loads((models / "state.json").read_text())
    roles = ("generic", "difference", "validation", "base")
    return models.parent.name, {role: models / f"{said[role]}.safetensors" for role in roles}


LAST_ROUND = "round = 2 AND kind NOT IN ('train', 'evaluate')"
"""Of the personalization; the Flower strategy's has other messages."""


@pytest.fixture
def in_round_2(undisturbed_long, tmp_path) -> Path:
    """A run that was killed when its last round began."""
    folder = Path(shutil.copytree(undisturbed_long, tmp_path / "run"))
    with closing(sqlite3.connect(folder / "journal.sqlite")) as journal, journal:
        journal.execute(f"DELETE FROM messages WHERE {LAST_ROUND}")
    return folder


@pytest.mark.faults
@pytest.mark.parametrize("role", ["generic", "difference", "validation", "base"])
def test_what_only_a_round_that_has_ended_could_bring_is_named(corpus, in_round_2, role):
    path = held_by(in_round_2)[1][role]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RunError) as told:
        simulate(settings(corpus, federation=LONG), in_round_2)
    first, why = str(told.value).splitlines()
    assert first == f"{path}: missing or damaged"
    assert why == "The round that it is from has ended: without it the run cannot be resumed"


@pytest.mark.faults
def test_what_no_device_is_asked_for_any_more_is_not_missed(corpus, undisturbed_long, tmp_path):
    folder = Path(shutil.copytree(undisturbed_long, tmp_path / "run"))
    for path in held_by(folder)[1].values():
        path.unlink()
    (folder / "results.json").unlink()
    assert resume(settings(corpus, federation=LONG), folder).kinds == []
    assert_same(folder, undisturbed_long)


@pytest.mark.faults
def test_a_device_that_dropped_out_may_have_lost_everything(corpus, in_round_2):
    speaker, files = held_by(in_round_2)
    for path in files.values():
        path.unlink()
    with closing(sqlite3.connect(in_round_2 / "journal.sqlite")) as journal, journal:
        state = json.loads(journal.execute("SELECT state FROM rounds").fetchone()[0])
        state["active"].remove(speaker)
        failure = {"speaker": speaker, "round": 1, "message": "train.install", "reason": "gone"}
        state["failures"].append(failure)
        journal.execute("UPDATE rounds SET state = ?", [json.dumps(state)])
    resume(settings(corpus, federation=LONG), in_round_2)
    found = results(in_round_2)
    assert found["failures"] == [failure] and speaker not in {
        row["speaker"] for row in found["per_speaker"]
    }


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES[1:])
@pytest.mark.parametrize("name", ["trained.safetensors", "trained.json", "trained.epochs.json"])
def test_a_damaged_g_is_named_and_obtained_anew_without_it(
    corpus, undisturbed, finished, name, damage
):
    folder = finished / "models"
    inflict(damage, folder / name)
    with pytest.raises(ModelError) as told:
        simulate(settings(corpus), finished)
    first, hint = str(told.value).splitlines()
    assert str(folder / name) in first
    assert hint.startswith(f"Without {folder / 'trained.safetensors'} and its .json files --resume")
    for path in folder.glob("trained.*"):
        path.unlink()
    asked = resume(settings(corpus), finished)
    assert asked.kinds == []
    assert_same(finished, undisturbed)


@pytest.mark.faults
def test_without_its_journal_a_run_asks_anew_and_devices_keep_what_they_have(
    corpus, undisturbed, finished
):
    def trained() -> dict[Path, int]:
        return {
            path: path.stat().st_ino for path in finished.glob("devices/*/models/*.safetensors")
        }

    before = trained()
    for path in finished.glob("journal.sqlite*"):
        path.unlink()
    asked = resume(settings(corpus), finished)
    assert set(asked.ids) <= journaled(undisturbed)
    assert asked.kinds.count(protocol.PERSONALIZE) == len(results(undisturbed)["per_speaker"])
    assert trained() == before
    again, first = results(finished), results(undisturbed)
    # Devices hold G by now: less is sent down.
    assert again.pop("bytes")["down"] < first.pop("bytes")["down"]
    assert again == first


@pytest.mark.faults
def test_a_damaged_answer_with_tensors_is_asked_for_again(corpus, undisturbed_long, tmp_path):
    folder = Path(shutil.copytree(undisturbed_long, tmp_path / "run"))
    path = sorted((folder / "answers").iterdir())[0]
    path.write_bytes(changed(path.read_bytes()))
    asked = resume(settings(corpus, federation=LONG), folder)
    assert asked.kinds == [protocol.PLAIN_TRAIN]
    assert_same(folder, undisturbed_long)


@pytest.mark.faults
def test_a_device_that_forgot_what_it_holds_is_named_and_begins_anew_without_it(
    corpus, undisturbed, finished, first_speaker
):
    path = finished / "devices" / first_speaker / "models" / "state.json"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RunError) as told:
        simulate(settings(corpus), finished)
    first, hint = str(told.value).splitlines()
    assert first.startswith(f"{path}: not readable: ") and hint.startswith("Without this file ")
    path.unlink()
    resume(settings(corpus), finished)
    assert_same(finished, undisturbed)


# What cannot be resumed.


def test_other_settings_are_listed(corpus, finished):
    other = settings(corpus, personal={"epochs": 2}, seed=5)
    with pytest.raises(RunError) as told:
        simulate(other, finished)
    lines = str(told.value).splitlines()
    assert lines[0].endswith("it cannot be resumed with these:")
    assert lines[1:] == [
        "  personal.epochs: 1 there, 2 here",
        "  seed: 0 there, 5 here",
    ]


def test_workers_may_change_but_not_their_threads(corpus, undisturbed, finished):
    simulate(settings(corpus, engine={"workers": 7, "retries": 0}), finished)
    assert_same(finished, undisturbed)
    with pytest.raises(RunError, match=r"engine\.cpus_per_worker: 1 there, 2 here"):
        simulate(settings(corpus, engine={"cpus_per_worker": 2}), finished)


def test_another_corpus_is_refused(tone_corpus, tmp_path):
    corpus = tone_corpus(tmp_path / "corpus", 5)
    experiment = settings(corpus, federation={"bases": ["generic"]})
    simulate(experiment, tmp_path / "run")
    manifest = corpus / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"ba"', '"gu"', 1))
    with pytest.raises(RunError, match="the corpus is not the one that this run began with"):
        simulate(experiment, tmp_path / "run")


@pytest.mark.faults
@pytest.mark.parametrize(
    "damage",
    [
        *("the header", "the middle", "answer = '{' || answer", "answer = '{}'", "bytes_up = NULL"),
        *('answer = \'{"configs": {}, "metrics": {}}\'', "round = 'a'"),
    ],
)
def test_a_damaged_journal_is_named(corpus, finished, damage):
    path = finished / "journal.sqlite"
    (finished / "results.json").unlink()
    if "=" in damage:
        with sqlite3.connect(path) as database:
            database.execute(f"UPDATE messages SET {damage}")
        database.close()
    else:
        content = bytearray(path.read_bytes())
        start = 0 if damage == "the header" else 4096
        content[start : start + 4096] = b"\xff" * 4096
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"journal\.sqlite: the journal is damaged"):
        simulate(settings(corpus), finished)


@pytest.mark.faults
def test_a_round_that_the_journal_has_lost_is_told(corpus, undisturbed_long, tmp_path):
    folder = Path(shutil.copytree(undisturbed_long, tmp_path / "run"))
    with sqlite3.connect(folder / "journal.sqlite") as database:
        database.execute("UPDATE rounds SET state = replace(state, 'active', 'actiwe')")
    database.close()
    with pytest.raises(RunError, match=r"of the last round it does not say active; "):
        simulate(settings(corpus, federation=LONG), folder)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["config.toml", "environment.json"])
def test_a_damaged_file_of_the_run_is_named(corpus, finished, name):
    (finished / name).write_text("{ nothing that")
    with pytest.raises(RunError, match=f"{name}: damaged, cannot be resumed"):
        simulate(settings(corpus), finished)


@pytest.mark.faults
def test_a_corpus_without_a_fingerprint_is_not_the_same(corpus, finished):
    (finished / "environment.json").write_text('{"corpus": 3}')
    with pytest.raises(RunError, match="the corpus is not the one that this run began with"):
        simulate(settings(corpus), finished)


def test_an_engine_that_is_no_table_is_damage(corpus, finished):
    path = finished / "config.toml"
    text = path.read_text()
    path.write_text('engine = "none"\n' + text[: text.index("[engine]")])
    with pytest.raises(RunError, match=r"config\.toml: damaged, cannot be resumed: engine"):
        simulate(settings(corpus), finished)
