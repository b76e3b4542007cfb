"""The same experiment gives the same bytes wherever its clients run."""

import pytest
from federations import LONG, assert_same, results, settings, simulate


def on_ray(workers: int) -> dict:
    return {"grid": "ray", "workers": workers}


@pytest.mark.parametrize("workers", [1, 4])
def test_on_ray_as_in_one_process(corpus, undisturbed, one_ray, tmp_path, workers):
    there = simulate(settings(corpus, engine=on_ray(workers)), tmp_path / "run")
    assert_same(there, undisturbed)


def test_rounds_and_a_flower_strategy_on_ray(corpus, undisturbed_long, one_ray, tmp_path):
    there = simulate(settings(corpus, federation=LONG, engine=on_ray(2)), tmp_path / "run")
    assert_same(there, undisturbed_long)


def test_another_seed_is_another_run(corpus, undisturbed, tmp_path):
    other = simulate(settings(corpus, seed=1, federation={"bases": ["generic"]}), tmp_path / "run")
    assert results(other)["personal"] != results(undisturbed)["personal"]


def test_mixing_on_the_server_gives_the_same_table(corpus, undisturbed, tmp_path):
    """P_s and M_s are the same bits on both sides, so alpha * P_s + (1 - alpha) * M_s is too."""
    mixed = simulate(settings(corpus, federation={"mix_on": "server"}), tmp_path / "run")
    here, there = results(undisturbed), results(mixed)
    by_device = [row for row in here["table"] if row["alpha"] != "chosen"]
    assert there["table"] == by_device
    assert len(by_device) == 5 * 3
    assert there["chosen_alpha"] is None
    for name in ("generic", "personal", "peers", "layer_correlation"):
        assert there[name] == here[name]
    best = [row for row in here["differences"] if row["alpha"] != "chosen"]
    assert there["differences"] == best
    assert len(best) == 5 * 2
    for path in sorted((undisturbed / "models").rglob("*.safetensors")):
        assert path.read_bytes() == (mixed / path.relative_to(undisturbed)).read_bytes()
