import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.spatial.distance import cdist

from fedspeech import population, tensors
from fedspeech.errors import ModelError
from fedspeech.population import Population
from fedspeech.tensors import sha256

SPEAKERS = ("a", "b", "c", "d", "e")
SHAPES = {"one.bias": (4,), "one.weight": (4, 3, 2), "two": (3, 5), "z": ()}


def drawn(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(s, generator=generator) for n, s in SHAPES.items()}


@pytest.fixture
def people(tmp_path) -> Population:
    found = Population(tmp_path)
    tensors.write(found.generic_path, drawn(100))
    for number, speaker in enumerate(SPEAKERS):
        found.keep(speaker, drawn(number, 0.01))
    return found


def test_what_is_kept_is_g_plus_the_difference(people):
    generic = drawn(100)
    for number, speaker in enumerate(SPEAKERS):
        wanted = {n: generic[n] + t for n, t in drawn(number, 0.01).items()}
        assert sha256(dict(people.personal(speaker))) == sha256(wanted)
        for name, difference in people.difference(speaker).items():
            assert torch.equal(difference, wanted[name] - generic[name])
    assert sha256(dict(people.generic())) == sha256(generic)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"two": torch.full((3, 5), float("nan"))}, "tensor two has values that are NaN"),
        ({"two": torch.full((3, 5), float("inf"))}, "tensor two has values that are NaN"),
        ({"two": torch.zeros(5, 3)}, r"tensor two has shape \(5, 3\), the model has \(3, 5\)"),
        ({"three": torch.zeros(1)}, "tensor three is not in the model"),
        ({"two": None}, "tensor two is missing"),
    ],
)
def test_a_difference_that_does_not_fit_is_refused_and_the_old_model_stays(people, change, told):
    before = people.personal_path("a").read_bytes()
    difference = {n: t for n, t in {**drawn(7), **change}.items() if t is not None}
    with pytest.raises(ModelError, match=told):
        people.keep("a", difference)
    assert people.personal_path("a").read_bytes() == before
    with pytest.raises(ModelError, match=told):
        people.keep("new", difference)
    assert not people.personal_path("new").exists()


def test_the_total_is_summed_in_float64_and_follows_what_is_kept(people):
    def check(speakers) -> None:
        found = dict(people.total(speakers))
        for name in SHAPES:
            wanted = sum(dict(people.personal(s))[name].double().numpy() for s in speakers)
            assert found[name].dtype == torch.float64
            assert_allclose(found[name].numpy(), wanted, rtol=1e-14)

    check(SPEAKERS)
    check(SPEAKERS)
    check(SPEAKERS[:2])
    people.keep("b", drawn(50))
    check(SPEAKERS[:2])
    check(["c"])


def test_the_total_is_computed_once(people, monkeypatch):
    first = dict(people.total(SPEAKERS))
    monkeypatch.setattr(people, "personal", None)  # reading again would fail
    assert sha256(dict(people.total(SPEAKERS))) == sha256(first)


def flat(people: Population, speaker: str, names: list[str]) -> np.ndarray:
    model = dict(people.personal(speaker))
    return np.concatenate([model[name].double().numpy().ravel() for name in names])


@pytest.mark.parametrize("names", [["one.weight", "one.bias"], ["z"], list(SHAPES)])
@pytest.mark.parametrize("block", [5, 12, 2**22])
def test_distances_are_scipys_in_float64(people, monkeypatch, names, block):
    monkeypatch.setattr(population, "BLOCK_VALUES", block)
    rows = np.stack([flat(people, speaker, names) for speaker in SPEAKERS])
    found = people.distances(SPEAKERS, names)
    assert found.dtype == np.float64
    assert_allclose(found, cdist(rows, rows), rtol=1e-9, atol=1e-15)
    assert not found.diagonal().any() and np.array_equal(found, found.T)


def test_distances_of_models_that_lie_close_together_do_not_cancel(tmp_path):
    people = Population(tmp_path)
    tensors.write(people.generic_path, {"a": torch.full((10_000,), 1000.0)})
    for speaker, value in (("a", 0.0), ("b", 2.0**-13)):  # the last place of 1000 is 2**-14
        people.keep(speaker, {"a": torch.full((10_000,), value)})
    assert people.distances(["a", "b"], ["a"])[0, 1] == 100 * 2.0**-13


def test_a_speaker_without_a_model_is_told(people):
    with pytest.raises(ModelError, match=r"nobody.safetensors: not a readable model"):
        list(people.personal("nobody"))


MEMORY = """
import sys, threading
from pathlib import Path
import torch
from fedspeech import population, tensors
from fedspeech.population import Population

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024

def most(work):
    before, seen, done = anonymous(), [0.0], threading.Event()
    def watch():
        while not done.wait(0.001):
            seen.append(anonymous() - before)
    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return max(seen)

people = Population(Path(sys.argv[1]))
names = [f"layer.{i:02}" for i in range(20)]
tensors.write(people.generic_path, {name: torch.zeros(256, 1024) for name in names})
speakers = [f"s{i:02}" for i in range(20)]
for number, speaker in enumerate(speakers):
    model = {name: torch.full((256, 1024), float(number)) for name in names}
    tensors.write(people.personal_path(speaker), model)
del model

def average():
    streams = [people.personal(speaker) for speaker in speakers]
    for name, tensor in tensors.weighted_sum(streams, [1 / 20] * 20):
        assert abs(tensor.mean().item() - 9.5) < 1e-4

def distances():
    for _ in range(3):
        people.distances(speakers, names[:3])

population.BLOCK_VALUES = 2**17
print(most(average), most(distances))
"""


def test_neither_averages_nor_distances_hold_the_models_in_memory(child, tmp_path):
    done = child(MEMORY, tmp_path)
    assert done.returncode == 0, done.stderr
    average, distances = map(float, done.stdout.split())
    # All models are 400 MiB. The average has one tensor of 1 MiB of each, mapped from its file, and
    # its sum; the allocator keeps some of those before. The distances have a block of 1 MiB, where
    # all values of a tensor would be 40 and their copies as much again.
    assert average < 60
    assert distances < 60
