"""Speakers fine-tuned as stacks, in process and on Ray, interrupted or not."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from federations import Around, apart, results, settings, simulate

from fedspeech import tensors
from fedspeech.errors import ConfigError
from fedspeech.simulation.cohorts import Cohorts

CLIENTS = 4
SIZE = 3
"""So that the last cohort has one speaker."""


def experiment(corpus, **engine):
    federation = {"bases": ["mean"], "alphas": [0.0, 1.0]}
    personal = {"epochs": 2, "batch_size": 4, "precision": "fp32"}
    return settings(corpus, federation=federation, personal=personal, engine=engine)


def bytes_of(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in (folder / "models").rglob("*.safetensors")}
    return {**found, "results": (folder / "results.json").read_bytes()}


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """A run in process."""
    folder = tmp_path_factory.mktemp("cohorts") / "run"
    return simulate(experiment(corpus, grid="in-process", cohort=SIZE), folder)


def test_a_cohort_of_one_is_the_plain_loop(corpus, whole, tmp_path):
    alone = simulate(experiment(corpus, grid="in-process", cohort=1), tmp_path / "run")
    assert len(results(alone)["per_speaker"]) == CLIENTS
    generic = tensors.read(alone / "models" / "generic.safetensors")
    for path in sorted((alone / "models" / "personal").iterdir()):
        ours, theirs = tensors.read(whole / "models" / "personal" / path.name), tensors.read(path)
        assert apart(ours, theirs, generic) < 0.1


def test_a_grid_that_is_not_ours_has_no_cohorts(corpus, tmp_path):
    """As under `flwr run`: it would fine-tune every speaker by itself, and give other models."""
    with pytest.raises(ConfigError) as told:
        simulate(experiment(corpus, cohort=SIZE), tmp_path / "run", around=Around)
    assert str(told.value) == (
        "engine.cohort = 3: Flower asks every client by itself; expected 1, or a run by "
        "`fedspeech run`"
    )
    assert not (tmp_path / "run" / "devices").exists()


@pytest.mark.parametrize("workers", [2])
def test_on_ray_it_is_the_same_to_the_byte(corpus, whole, tmp_path, workers):
    asked = experiment(corpus, grid="ray", workers=workers, cohort=SIZE)
    assert bytes_of(simulate(asked, tmp_path / "run")) == bytes_of(whole)


@pytest.mark.faults
@pytest.mark.parametrize("grid", ["in-process", "ray"])
def test_who_is_lost_is_fine_tuned_in_the_same_stack_again(corpus, whole, tmp_path, grid):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    # What a kill leaves: of the first cohort one device has answered, and two had not even kept it.
    names = sorted(path.name for path in (folder / "devices").iterdir() if path.name != "pool")
    with sqlite3.connect(folder / "journal.sqlite") as journal:
        for name in names[1:SIZE]:
            journal.execute(
                "DELETE FROM messages WHERE speaker = ? AND kind != ?", (name, "query.describe")
            )
            shutil.rmtree(folder / "devices" / name / "models")
            (folder / "models" / "personal" / f"{name}.safetensors").unlink()
    (folder / "results.json").unlink()
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('grid = "in-process"', f'grid = "{grid}"'))
    asked = experiment(corpus, grid=grid, cohort=SIZE)
    assert bytes_of(simulate(asked, folder)) == bytes_of(whole)


# Who waits for whom.


def test_cohorts_are_cut_by_the_order_of_the_nodes():
    cohorts = Cohorts(2, [11, 12, 13, 14, 15])
    cohorts.add(11, "m11")
    assert cohorts.first(whole=True) is None
    cohorts.add(12, "m12")
    first = cohorts.first(whole=True)
    assert (first.nodes, first.messages) == ([11, 12], {11: "m11", 12: "m12"})
    assert cohorts.take(12) is None
    cohorts.add(14, "m14")
    assert cohorts.first(whole=True) is None  # 13 may yet come
    cohorts.add(15, "m15")
    lacking = cohorts.first(whole=True)
    assert (lacking.nodes, lacking.messages) == ([13, 14], {14: "m14"})
    assert cohorts.first(whole=True).nodes == [15]
    assert cohorts.first(whole=False) is None


def test_a_new_exchange_begins_with_the_first_cohort_again():
    cohorts = Cohorts(2, [1, 2, 3, 4])
    for node in (1, 2, 3):
        cohorts.add(node, str(node))
    assert [cohorts.first(whole=True).nodes, cohorts.first(whole=True)] == [[1, 2], None]
    assert cohorts.first(whole=False).nodes == [3, 4]
    cohorts.add(1, "1")
    assert cohorts.first(whole=True) is None
    cohorts.add(4, "4")
    assert cohorts.first(whole=True).messages == {1: "1"}


def test_a_cohort_that_is_left_keeps_its_place():
    cohorts = Cohorts(2, [1, 2, 3])
    cohorts.add(1, "a")
    assert json.dumps(cohorts.take(2).messages) == '{"1": "a"}'
    cohorts.add(1, "again")
    assert cohorts.take(1).messages == {1: "again"}
