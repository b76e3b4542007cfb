"""Modules that are not plain: tied weights, parametrizations of their own, other dtypes."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from fedspeech.diff import budget, hashed
from fedspeech.diff.apply import apply
from fedspeech.diff.learned import LearnedDiff
from fedspeech.diff.learned_hash import HashDiff
from fedspeech.diff.learned_sparse import CubicSchedule, SparseDiff
from fedspeech.errors import DiffError
from fedspeech.tensors import sha256, state

SHARE = 0.25
TOKENS, SIZE = 12, 5
SPOKEN = torch.tensor([[1, 4, 4, 7], [0, 2, 11, 4]])
DIFFS = {
    "sparse": lambda module, **more: SparseDiff(module, CubicSchedule(0, 0, 1), **more),
    "hash": lambda module, **more: HashDiff(module, SHARE, **more),
}
each_diff = pytest.mark.parametrize("diff", DIFFS.values(), ids=DIFFS)


class Language(torch.nn.Module):
    """Each token tells the next; the output layer is the embedding, where they are tied."""

    def __init__(self, tied: bool = True, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(TOKENS, SIZE, sparse=sparse)
        self.output = torch.nn.Linear(SIZE, TOKENS, bias=False)
        if tied:
            self.output.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.output(self.embedding(tokens).tanh())


def loss_of(module: torch.nn.Module) -> torch.Tensor:
    scores = module(SPOKEN[:, :-1]).flatten(0, 1)
    return torch.nn.functional.cross_entropy(scores, SPOKEN[:, 1:].flatten())


def train(module: torch.nn.Module, steps: int = 5) -> None:
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(module).backward()
        optimizer.step()


def plain_gradient(module: torch.nn.Module, name: str) -> np.ndarray:
    loss_of(module).backward()
    return module.get_parameter(name).grad.to_dense().numpy()


def of_cells(gradient: np.ndarray, weight: torch.Tensor, learned: HashDiff, name: str):
    """The gradient of A, value by value: each goes to its K cells, times its magnitude."""
    size = round(SHARE * gradient.size)
    found = np.zeros(size)
    moved = (gradient * weight.numpy()).ravel() * np.sign(weight.numpy()).ravel()
    for key in hashed.keys(learned.seed, name, 0, 3):
        for place, cell in enumerate(hashed.cells(key, 0, gradient.size, size)):
            found[cell] += moved[place]
    return found


def assert_gradient(learned: LearnedDiff, plain: torch.nn.Module, name: str) -> None:
    """Of what is trained, beside the plain module's."""
    wanted = plain_gradient(plain, name)
    if isinstance(learned, HashDiff):
        wanted = of_cells(wanted, plain.get_parameter(name).detach(), learned, name)
    loss_of(learned.module).backward()
    assert_allclose(learned.trained(name).grad.to_dense(), wanted, rtol=1e-4, atol=1e-7)


# Tied weights.


@each_diff
def test_a_tied_weight_is_trained_once_for_all_its_places(diff):
    learned = diff(Language())
    assert list(learned.parts) == ["embedding.weight"]
    assert learned.tied == {"output.weight": "embedding.weight"}
    assert [id(p) for p in learned.module.parameters()] == [id(learned.trained("embedding.weight"))]
    assert sha256(learned.state()) == sha256(state(Language()))
    assert_gradient(learned, Language(), "embedding.weight")


@each_diff
def test_tied_weights_stay_tied(diff):
    module = Language()
    before, learned = loss_of(module).item(), diff(module)
    train(module)
    twin = copy.deepcopy(module)
    assert len(list(twin.parameters())) == 1 and loss_of(twin) == loss_of(module) < before
    after = learned.state()
    assert torch.equal(after["embedding.weight"], after["output.weight"])
    assert not torch.equal(after["embedding.weight"], state(Language())["embedding.weight"])
    learned.remove()
    assert module.output.weight is module.embedding.weight
    assert sha256(state(module)) == sha256(after)


@each_diff
def test_a_tied_weight_can_be_sent_once(diff):
    module = Language()
    learned = diff(module)
    train(module)
    old, new = (
        {name: t for name, t in model.items() if name not in learned.tied}
        for model in (state(Language()), learned.state())
    )
    method = {"method": learned.method()} if isinstance(learned, HashDiff) else {}
    device = Language()
    device.load_state_dict(apply(old, budget.make(old, new, **method).data), strict=False)
    assert torch.allclose(device(SPOKEN), module(SPOKEN), rtol=1e-5)


def test_the_name_that_is_chosen_is_the_one_that_is_learned():
    learned = HashDiff(Language(), SHARE, names=["output.weight", "embedding.weight"])
    assert list(learned.arrays()) == ["output.weight"]
    assert learned.tied == {"embedding.weight": "output.weight"}
    assert_gradient(learned, Language(), "output.weight")


@each_diff
def test_a_layer_that_is_used_twice(diff):
    layer = torch.nn.Linear(3, 3)
    module = torch.nn.Sequential(layer, torch.nn.Tanh(), layer)
    before = state(module)
    learned = diff(module)
    assert learned.tied == {"2.weight": "0.weight"}
    assert sha256(learned.state()) == sha256(before)
    learned.remove()
    assert sha256(state(module)) == sha256(before)


# Modules with parametrizations of their own.


@each_diff
@pytest.mark.parametrize("norm", [spectral_norm, weight_norm])
@pytest.mark.parametrize("where", ["all", "another"])
def test_a_modules_own_parametrizations_stay(diff, norm, where):
    def made() -> torch.nn.Module:
        module = Language(tied=False)
        torch.manual_seed(1)
        norm(module.output)
        return module.eval()

    module, plain = made(), made()
    learned = diff(module, names=["embedding.weight"] if where == "another" else None)
    assert sha256(learned.state()) == sha256(state(plain))
    assert torch.allclose(module(SPOKEN), plain(SPOKEN))
    train(module.train())
    after, outputs = learned.state(), module.eval()(SPOKEN)
    assert sha256(after) != sha256(state(plain))
    plain.load_state_dict(after)
    assert torch.allclose(plain(SPOKEN), outputs, rtol=1e-5)
    learned.remove()
    assert sha256(state(module)) == sha256(after)


# Zeros.


@pytest.mark.parametrize(("zeros", "additive"), [(0.7, True), (0.3, False)])
def test_what_is_mostly_zero_is_learned_additively(zeros, additive):
    """Scattered, so that no row is zero. The diff gives what was learned, to the bit."""
    module = torch.nn.Linear(20, 30)
    with torch.no_grad():
        draw = torch.rand(30, 20, generator=torch.Generator().manual_seed(1))
        module.weight[draw < zeros] = 0
    old = state(module)
    assert bool(old["weight"].any(dim=1).all())
    asked = HashDiff(copy.deepcopy(module), SHARE, additive=True)
    compressed = HashDiff(copy.deepcopy(module), SHARE, anchored=False)
    learned = HashDiff(module, SHARE)
    assert learned.fallen_back == (("weight",) if additive else ())
    assert asked.fallen_back == compressed.fallen_back == ()
    with torch.no_grad():
        learned.trained("weight").add_(0.5)
    new = learned.state()
    assert bool((new["weight"][draw < zeros] != 0).all()) == additive
    result = apply(old, budget.make(old, new, None, learned.method()).data)
    assert sha256(result) == sha256(new)


# Other dtypes, and gradients that are sparse.


class Described(torch.nn.Linear):
    """Has more in its state than tensors."""

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


@each_diff
@pytest.mark.parametrize(
    ("module", "told"),
    [
        (torch.jit.script(torch.nn.Linear(4, 3)), "a TorchScript module cannot be parametrized"),
        (Described(4, 3), "_extra_state: expected a tensor in the module's state, found dict"),
        (torch.nn.LazyLinear(3), "weight has no shape yet"),
    ],
    ids=["scripted", "extra state", "lazy"],
)
def test_modules_of_which_no_diff_can_be_learned_are_told(diff, module, told):
    with pytest.raises(DiffError, match=told):
        diff(module)


@each_diff
def test_embeddings_with_a_greatest_norm_are_learned(diff):
    """Their rows are made shorter in place, as they are looked up."""
    torch.manual_seed(0)
    module = torch.nn.Embedding(10, 8, max_norm=1.0)
    learned = diff(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    before = learned.state()["weight"]
    module(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    after = learned.state()["weight"]
    assert not torch.equal(before[1:3], after[1:3])
    assert float(module(torch.tensor([1, 2])).detach().norm(dim=1).max()) <= 1 + 1e-5


@each_diff
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_where_nothing_can_be_learned_is_told(diff, dtype):
    module = Language().to(getattr(torch, dtype))
    with pytest.raises(DiffError, match=f"nothing to learn a diff of: .* 2 parameters in {dtype}"):
        diff(module)
    with pytest.raises(DiffError, match=rf"output\.weight: expected torch\.float32, .*{dtype}"):
        diff(module, names=["output.weight"])
    with pytest.raises(DiffError, match="found 0 parameters in no dtype"):
        diff(torch.nn.ReLU())


@each_diff
def test_sparse_gradients_of_an_embedding(diff):
    learned = diff(Language(tied=False, sparse=True))
    assert_gradient(learned, Language(tied=False, sparse=True), "embedding.weight")
    before = loss_of(learned.module).item()
    train(learned.module)
    assert loss_of(learned.module).item() < before
