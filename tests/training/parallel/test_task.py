"""What all learners have to agree upon, wherever their corpus lies."""

import json
import shutil
from contextlib import chdir

import pytest

from fedspeech import corpus
from fedspeech.config import DataParallelConfig
from fedspeech.training.parallel.crew import everywhere
from fedspeech.training.parallel.task import Task


@pytest.fixture
def fingerprint(tmp_path):
    """Of the corpus in a folder, with some settings changed."""

    def of(folder, seed: int = 0, **changed) -> str:
        table = {
            "kind": "data-parallel",
            "corpus": {"path": str(folder)},
            "test": {"speakers": 1},
            "features": {"kind": "log-mel", "dimension": 8},
            "units": {"kind": "words"},
            "training": {"augmentation": {"speeds": [1.0]}},
            **changed,
        }
        settings = DataParallelConfig.model_validate(table)
        task = Task(settings, corpus.load(settings.corpus), tmp_path / "cache")
        return task.fingerprint(settings, seed)

    return of


def test_learners_find_the_corpus_and_its_lists_from_another_folder(tmp_path):
    """Those of a Ray that was joined run in whatever folder Ray was started in."""
    table = {"kind": "data-parallel", "corpus": {"path": "speech"}, "test": {"speakers": "of.txt"}}
    with chdir(tmp_path):
        found = everywhere(DataParallelConfig.model_validate(table))
    assert found.corpus.path == str(tmp_path / "speech")
    assert found.test.speakers == str(tmp_path / "of.txt")
    for speakers in (3, ["a", "b"], "rest"):
        settings = DataParallelConfig.model_validate({"test": {"speakers": speakers}})
        assert everywhere(settings) == settings


def test_learners_agree_on_speech_and_settings(tone_corpus, fingerprint, tmp_path):
    """The same corpus at another place is the same; one other word is not."""
    here = tone_corpus(tmp_path / "here", 2, rounds=1, per_round=3)
    moved = shutil.copytree(here, tmp_path / "moved")
    other = shutil.copytree(here, tmp_path / "other")
    manifest = other / "manifest.jsonl"
    first, *rest = manifest.read_text().splitlines()
    changed = json.loads(first) | {"text": "di di"}
    manifest.write_text("\n".join([json.dumps(changed), *rest]) + "\n")
    usual = fingerprint(here)
    assert fingerprint(moved) == usual
    assert fingerprint(here, name="another", engine={"cpus_per_worker": 2}) == usual
    assert fingerprint(other) != usual
    said = shutil.copytree(here, tmp_path / "said")
    taught = said / json.loads(first)["audio"]
    heard = bytearray(taught.read_bytes())
    heard[-1] ^= 1  # of the last sample; as many bytes, and the same words
    taught.write_bytes(heard)
    assert fingerprint(said) != usual
    assert fingerprint(here, seed=1) != usual
    assert fingerprint(here, training={"learning_rate": 1e-3}) != usual
