"""A small disk, really full: the run stops with one line, and nothing is half-written."""

import json
import os
from pathlib import Path

import pytest
from federations import assert_same, settings, simulate

from fedspeech import tensors
from fedspeech.errors import RunError

ALL = os.environ.get("FEDSPEECH_FAULTS") == "all"
SHARES = [number / 10 for number in range(1, 10)] if ALL else [0.45, 0.75]
"""Of what the run takes, as much as there is at first; while P_s come in, and before them."""
GRIDS = ["in-process", "ray"] if ALL else ["in-process"]


def taken(folder: Path) -> int:
    """Bytes on disk; devices share the file of G."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({about.st_ino: about.st_blocks * 512 for about in files}.values())


def assert_whole(folder: Path) -> None:
    """Whatever has its final name can be read, and nothing else is left."""
    assert not list(folder.rglob("*.part"))
    for path in folder.rglob("*.safetensors"):
        tensors.read(path)
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_full_disk_stops_the_run_and_with_more_room_it_goes_on(
    corpus, undisturbed, small_disk, grid
):
    folder, resize = small_disk
    experiment = settings(corpus, engine={"grid": grid, "workers": 2})
    total = taken(undisturbed)
    for share in SHARES:
        resize(int(share * total))
        with pytest.raises(RunError) as told:
            simulate(experiment, folder / "run")
        assert str(folder) in str(told.value)
        assert len(str(told.value).splitlines()) == 1
        assert not (folder / "run" / "results.json").exists()
        assert_whole(folder)
    resize(4 * total)
    simulate(experiment, folder / "run")
    assert_same(folder / "run", undisturbed)
