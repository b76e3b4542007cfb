"""What is timed builds the right averages, and counts its bytes as it says."""

import numpy as np
import pytest

from experiments.benchmarks import averaging
from experiments.benchmarks.harness import Setting
from fedspeech import tensors
from fedspeech.population import Population
from strategies import Mean, Random

TINY = "benchmark-tiny"


@pytest.fixture
def federation(tmp_path):
    return averaging.Federation(tmp_path / "federation", 5, TINY, 0)


def written(federation):
    """The last M_s that was written, float32."""
    return np.fromfile(federation.folder / "out", dtype="<f4")


def test_averages_that_are_measured_are_the_right_ones(federation):
    models = [
        tensors.read(path)
        for path in sorted((federation.folder / "personal").glob("*.safetensors"))
    ]
    assert federation.bytes == 5 * 2 * 4 * sum(t.numel() for t in models[0].values())
    flat = [
        np.concatenate([t.double().numpy().ravel() for _, t in sorted(m.items())]) for m in models
    ]
    federation.copy()
    population = Population(federation.folder)
    assert (federation.folder / "out").read_bytes() == population.personal_path(
        "s0004"
    ).read_bytes()
    federation.stream_mean()
    np.testing.assert_allclose(written(federation), np.mean(flat[:4], axis=0), rtol=2e-7)
    # packed as Flower packs: NumPy's format, with a header of 128 bytes for each tensor
    for rule in (Mean(), Random(2)):
        federation.send(rule)
        size = (federation.folder / "out").stat().st_size
        assert size == federation.size + 128 * len(models[0])


def test_averaging_rows(tmp_path):
    plan = averaging.Plan(((4, TINY),), k=2, repeats=2, slow_repeats=1)
    rows = list(averaging.rows(Setting(tmp_path), plan))
    assert [row["page cache"] for row in rows] == ["cold"] * 4 + ["warm"] * 3
    copy, mean, _, random = rows[:4]
    assert copy["/ the copy's speed"]["values"] == [1.0, 1.0]
    ratio = mean["MB/s read and written"]["values"][1] / copy["MB/s read and written"]["values"][1]
    assert mean["/ the copy's speed"]["values"][1] == pytest.approx(ratio)
    assert len(random["seconds"]["values"]) == 1
    assert not list(tmp_path.iterdir())
