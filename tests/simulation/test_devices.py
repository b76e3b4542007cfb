import json
import shutil
from pathlib import Path

import pytest
from federations import settings
from lhotse import CutSet

from clients.speaker import Speaker
from fedspeech import corpus as corpora
from fedspeech.corpus.partition import partition, pseudonym
from fedspeech.simulation import devices
from fedspeech.tensors import state


@pytest.fixture
def clients(corpus):
    experiment = settings(corpus)
    return partition(corpora.load(experiment.corpus), experiment.partition).clients


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_each_device_holds_its_own_speech_under_a_pseudonym(clients, tmp_path):
    devices.lay_out(clients, tmp_path, seed=3)
    by_name = {pseudonym(3, client.speaker): client for client in clients}
    assert devices.folders(tmp_path) == [tmp_path / name for name in sorted(by_name)]
    for name, client in by_name.items():
        for part, cuts in (("train", client.train), ("test", client.test)):
            found = list(CutSet.from_jsonl(tmp_path / name / f"{part}.jsonl"))
            assert [cut.id for cut in found] == [cut.id for cut in cuts]
        about = json.loads((tmp_path / name / "device.json").read_text())
        assert about["speaker"] == name


def test_what_is_whole_stays_and_what_is_not_is_written_again(clients, tmp_path):
    devices.lay_out(clients, tmp_path, seed=3)
    before = files(tmp_path)
    first, second, third, whole = devices.folders(tmp_path)
    (first / "device.json").unlink()  # as if it had been killed before the last file
    (first / "test.jsonl").write_text("")
    (second / "test.jsonl").write_bytes((second / "test.jsonl").read_bytes().replace(b"0", b"1", 1))
    (third / "device.json").write_text("{")
    stays = {path: path.stat().st_ino for path in whole.iterdir()}
    devices.lay_out(clients, tmp_path, seed=3)
    assert files(tmp_path) == before
    assert {path: path.stat().st_ino for path in whole.iterdir()} == stays


def test_audio_is_found_from_another_folder(corpus, tmp_path, monkeypatch):
    """Workers need not run where a relative path starts from."""
    monkeypatch.chdir(corpus.parent)
    experiment = settings(Path(corpus.name))
    clients = partition(corpora.load(experiment.corpus), experiment.partition).clients
    devices.lay_out(clients, tmp_path / "devices", seed=0)
    monkeypatch.chdir("/")
    for folder in devices.folders(tmp_path / "devices"):
        cut = next(iter(CutSet.from_jsonl(folder / "train.jsonl")))
        path = Path(cut.recording.sources[0].source)
        assert path.is_absolute() and path.exists()


def test_g_lies_there_once_also_where_the_run_was_moved(clients, undisturbed, tmp_path):
    moved = Path(shutil.copytree(undisturbed / "devices", tmp_path / "moved"))
    me = Speaker(devices.folders(moved)[0])
    assert me.store.hash("generic") is not None
    model = {name: tensor + 1 for name, tensor in state(me.description.empty()).items()}
    name = me.store.put("generic", model)
    shared = moved / "pool" / f"{name}.safetensors"
    assert shared.stat().st_ino == (me.folder / "models" / shared.name).stat().st_ino
    assert not (undisturbed / "devices" / "pool" / shared.name).exists()
