"""What is learned on top of a module, against autograd of the plain formula."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from fedspeech.diff import budget, hashed, wire
from fedspeech.diff.apply import apply
from fedspeech.diff.contents import Form
from fedspeech.diff.learned_hash import HashDiff, HashedWeight, cells
from fedspeech.diff.learned_sparse import CubicSchedule, SparseDiff, SparseMask
from fedspeech.errors import DiffError
from fedspeech.tensors import sha256, state

NEVER = CubicSchedule(0.0, 0, 1)
MATRICES = {
    *("conv.weight", "dense.weight", "lstm.weight_hh_l0", "lstm.weight_hh_l1"),
    *("lstm.weight_ih_l0", "lstm.weight_ih_l1"),
}


class Model(torch.nn.Module):
    """A convolution, recurrent layers, a normalization and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv1d(4, 8, 3, padding=1)
        self.norm = torch.nn.LayerNorm(8)
        self.lstm = torch.nn.LSTM(8, 6, num_layers=2, batch_first=True)
        self.dense = torch.nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.conv(inputs).transpose(1, 2))
        return self.dense(self.lstm(hidden)[0])


DRAW = torch.Generator().manual_seed(1)
INPUTS, TARGETS = torch.randn(5, 4, 7, generator=DRAW), torch.randn(5, 7, 3, generator=DRAW)


def loss_of(module: torch.nn.Module) -> torch.Tensor:
    return torch.nn.functional.mse_loss(module(INPUTS), TARGETS)


def train(module: torch.nn.Module, steps: int, after=lambda step: None) -> float:
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss_of(module).backward()
        optimizer.step()
        after(step)
    return loss_of(module).item()


DIFFS = {
    "sparse": lambda module, **more: SparseDiff(module, NEVER, **more),
    "hash": lambda module, **more: HashDiff(module, 0.3, **more),
    "hash-additive": lambda module, **more: HashDiff(module, 0.3, additive=True, **more),
}
each_diff = pytest.mark.parametrize("diff", DIFFS.values(), ids=DIFFS)


@each_diff
def test_a_diff_starts_as_nothing_and_leaves_a_plain_module(diff):
    module, plain = Model(), Model()
    learned = diff(module)
    assert set(learned.parts) == MATRICES
    assert sha256(learned.state()) == sha256(state(plain))
    assert torch.equal(module(INPUTS), plain(INPUTS))
    train(module, 3)
    after, outputs = learned.state(), module(INPUTS)
    learned.remove()
    assert sha256(state(module)) == sha256(after) != sha256(state(plain))
    assert torch.equal(module(INPUTS), outputs)
    assert set(module.state_dict()) == set(plain.state_dict())
    # And it trains on as any other.
    before = loss_of(module).item()
    assert train(module, 20) < before


@each_diff
def test_what_is_learned_makes_the_loss_smaller(diff):
    module = Model()
    diff(module)
    before = loss_of(module).item()
    assert train(module, 60) < 0.8 * before


@each_diff
def test_a_module_can_be_copied_while_it_learns(diff):
    module = Model()
    learned = diff(module)
    train(module, 2)
    twin = copy.deepcopy(module)
    assert torch.equal(twin(INPUTS), module(INPUTS))
    before = twin(INPUTS)
    train(module, 2)
    assert torch.equal(twin(INPUTS), before) and not torch.equal(module(INPUTS), before)
    assert len(learned.state()) == len(Model().state_dict())


def gradients_of_the_plain_module() -> dict[str, torch.Tensor]:
    plain = Model()
    loss_of(plain).backward()
    return {name: parameter.grad for name, parameter in plain.named_parameters()}


def test_a_masks_gradient_is_that_of_the_kept_weights():
    module = Model()
    learned = SparseDiff(module, NEVER)
    for name, mask in learned.parts.items():
        mask.kept.copy_(torch.rand(mask.kept.shape, generator=DRAW) < 0.5)
        assert learned.trained(name).shape == mask.kept.shape
    loss_of(module).backward()
    for name, gradient in gradients_of_the_plain_module().items():
        if name in MATRICES:
            found = learned.trained(name).grad
            assert_allclose(found, gradient * learned.parts[name].kept, rtol=1e-5, atol=1e-8)
        else:
            assert_allclose(module.get_parameter(name).grad, gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("hashes", [1, 3])
def test_an_arrays_gradient_is_autograds_of_the_plain_formula(additive, hashes, monkeypatch):
    """With an index array of the model's size, which is what ours never keeps; in float64."""
    monkeypatch.setattr(hashed, "BLOCK", 700)  # several blocks
    draw = torch.Generator().manual_seed(hashes)
    base = torch.randn(50, 60, generator=draw, dtype=torch.float64)
    keys = hashed.keys(3, "w", 0, hashes)
    part = HashedWeight(base, 200, keys, additive, anchored=True)
    ours = torch.randn(200, generator=draw, dtype=torch.float64, requires_grad=True)
    plain = ours.detach().clone().requires_grad_()
    places = torch.stack([torch.from_numpy(hashed.cells(key, 0, 3000, 200)) for key in keys])
    sums = plain[places].sum(0).view(50, 60)
    wanted = base + (sums if additive else base.abs() * sums)
    found = part(ours)
    assert_allclose(found.detach(), wanted.detach(), rtol=1e-12)
    weights = torch.randn(50, 60, generator=draw, dtype=torch.float64)
    (found.tanh() * weights).sum().backward()
    (wanted.tanh() * weights).sum().backward()
    assert_allclose(ours.grad, plain.grad, rtol=1e-10, atol=1e-12)


def test_the_forward_pass_is_what_the_device_computes_to_the_bit():
    base = torch.randn(300, 200, generator=DRAW)
    for additive in (False, True):
        keys = hashed.keys(3, "w", 0, 3)
        array = torch.randn(500, generator=DRAW)
        weight = HashedWeight(base, 500, keys, additive, True)(array).numpy().ravel()
        (device,) = hashed.apply([base.numpy().ravel()], array.numpy(), keys, additive)
        assert_array_equal(weight.view(np.uint32), device.view(np.uint32))


def test_no_index_array_of_the_models_size_is_kept():
    """Autograd saves nothing as large as the positions of all weights."""
    base = torch.randn(400, 500, generator=DRAW)
    part = HashedWeight(base, 50, hashed.keys(1, "w", 0, 3), False, True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        part(torch.zeros(50, requires_grad=True))
    assert not [t for t in saved if t.dtype not in (torch.float32,)]
    assert sum(t.numel() for t in saved) <= base.numel()  # |base|
    kept = [t for t in [*part.buffers(), *part.parameters()] if t is not part.base]
    assert kept == []


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_every_device_computes_the_same_cells(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    for key in hashed.keys(5, "w", 0, 4):
        wanted = hashed.cells(key, 2**31, 2**31 + 5000, 12345)
        found = cells(key, 2**31, 2**31 + 5000, 12345, torch.device(device))
        assert found.shape == (5000,) and found.dtype == torch.int64
        if device != "meta":
            assert_array_equal(found.cpu(), wanted)


def test_the_integer_arithmetic_of_other_devices_on_the_cpu(monkeypatch):
    """What a GPU would compute, by the same operations on the CPU."""

    class Elsewhere:
        type = "elsewhere"

    arange = torch.arange
    monkeypatch.setattr(torch, "arange", lambda *a, device, **more: arange(*a, **more))
    for first in (0, 2**32 - 3000):
        for key in hashed.keys(9, "w", 1, 3):
            found = cells(key, first, first + 3000, 2**30 + 7, Elsewhere())
            assert_array_equal(found, hashed.cells(key, first, first + 3000, 2**30 + 7))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@each_diff
def test_a_gpu_learns_what_a_cpu_learns(diff):
    module, other = Model(), Model().cuda()
    learned, elsewhere = diff(module, names=["dense.weight"]), diff(other, names=["dense.weight"])
    loss_of(module).backward()
    torch.nn.functional.mse_loss(other(INPUTS.cuda()), TARGETS.cuda()).backward()
    found, wanted = (d.trained("dense.weight").grad.cpu() for d in (elsewhere, learned))
    assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


# Pruning.


@pytest.mark.parametrize(
    ("step", "sparsity"),
    # By hand: 0.9 (1 - (1 - r)^3) at r = 0, 0, 1/4, 1/2, 1, beyond.
    [(0, 0.0), (1000, 0.0), (3500, 0.5203125), (6000, 0.7875), (11_000, 0.9), (20_000, 0.9)],
)
def test_the_cubic_schedule(step, sparsity):
    assert CubicSchedule(0.9, 1000, 11_000).at(step) == pytest.approx(sparsity, abs=1e-12)


@pytest.mark.parametrize("wrong", [(1.0, 0, 1), (-0.1, 0, 1), (0.5, 3, 3)])
def test_schedules_that_cannot_be(wrong):
    with pytest.raises(DiffError, match="pruning: expected a sparsity of at least 0 and below 1"):
        CubicSchedule(*wrong)


def test_pruning_keeps_the_largest_and_never_takes_back():
    mask = SparseMask(torch.zeros(2, 5))
    change = torch.nn.Parameter(torch.tensor([[5.0, -1, 3, -9, 2], [0.5, 7, -4, 6, 8]]))
    mask.prune(change, 0.5)
    assert change.tolist() == [[5, 0, 0, -9, 0], [0, 7, 0, 6, 8]]
    with torch.no_grad():
        change += torch.tensor([[0.0, 100, 0, 0, 0], [0, 0, 0, -5.5, 0]])
    assert mask(change)[0, 1] == 0  # an optimizer's momentum does not bring it back
    mask.prune(change, 0.6)
    assert change.tolist() == [[5, 0, 0, -9, 0], [0, 7, 0, 0, 8]]
    mask.prune(change, 0.1)
    assert int(mask.kept.sum()) == 4


def test_of_changes_that_are_as_large_the_first_are_kept():
    mask, change = SparseMask(torch.zeros(8)), torch.nn.Parameter(torch.ones(8))
    mask.prune(change, 0.75)
    assert change.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_each_matrix_is_pruned_to_the_schedule_while_it_is_trained():
    module = Model()
    old = state(module)
    learned = SparseDiff(module, CubicSchedule(0.8, 5, 25))
    shares = []

    def prune(step: int) -> None:
        learned.prune(step)
        shares.append({n: float(m.kept.float().mean()) for n, m in learned.parts.items()})

    train(module, 30, prune)
    for step, found in enumerate(shares, 1):
        for name, share in found.items():
            size = old[name].numel()
            wanted = size - round(CubicSchedule(0.8, 5, 25).at(step) * size)
            assert round(share * size) == wanted
    new = learned.state()
    for name in MATRICES:
        assert (new[name] != old[name]).sum() <= round(0.2 * old[name].numel()) + 1


# From what is learned to a diff.


def test_a_learned_sparse_diff_is_sent_as_it_is():
    module = Model()
    old = state(module)
    learned = SparseDiff(module, CubicSchedule(0.9, 0, 20))
    train(module, 25, learned.prune)
    new = learned.state()
    made = budget.make(old, new)
    assert made.lost < 1e-12
    assert sha256(apply(old, made.data)) == sha256(made.result)
    for entry in wire.decode(made.data).entries:
        if entry.name in MATRICES:
            (segment,) = entry.segments
            assert len(segment.codes) <= round(0.1 * segment.values) + 1


def test_a_learned_hash_diff_gives_the_trained_model_to_the_bit():
    module = Model()
    with torch.no_grad():
        module.dense.weight.zero_()
    old = state(module)
    learned = HashDiff(module, 0.2, hashes=2)
    assert learned.seed == hashed.seed_of(sha256(old))
    train(module, 25)
    new = learned.state()
    made = budget.make(old, new, None, learned.method())
    result = apply(old, made.data)
    for name in MATRICES:
        assert torch.equal(result[name], new[name]) and not torch.equal(new[name], old[name])
    diff = wire.decode(made.data)
    forms = {entry.name: entry.segments[0].form for entry in diff.entries}
    assert forms["dense.weight"] == Form.ADDITIVE
    assert forms["conv.weight"] == Form.MULTIPLICATIVE
    assert forms["dense.bias"] == Form.SPARSE
    small = budget.make(old, new, len(made.data) * 2 // 3, learned.method())
    assert len(small.data) <= len(made.data) * 2 // 3 and 0 < small.lost < 0.05


def test_the_compressed_model_itself_is_a_diff_from_nothing():
    """HashedNets and pruning: no anchor; the base is an empty model."""
    for diff in (
        HashDiff(Model(), 0.2, anchored=False, seed=4),
        SparseDiff(Model(), CubicSchedule(0.8, 0, 20), anchored=False),
    ):
        module = diff.module
        if isinstance(diff, SparseDiff):
            assert torch.equal(module(INPUTS), Model()(INPUTS))
        train(module, 25, diff.prune if isinstance(diff, SparseDiff) else lambda step: None)
        method = {"method": diff.method()} if isinstance(diff, HashDiff) else {}
        made = budget.make({}, diff.state(), None, **method)
        result = apply({}, made.data)
        for name, tensor in diff.state().items():
            assert torch.equal(result[name], tensor)
        assert len(made.data) < 0.5 * sum(4 * t.numel() for t in result.values())


def test_an_array_without_an_anchor_keeps_the_weights_variance():
    weight = torch.randn(300, 300, generator=DRAW) * 0.2
    part = HashedWeight(weight, 9000, hashed.keys(0, "w", 0, 3), False, anchored=False)
    assert float(part(part.right_inverse(weight)).std()) == pytest.approx(0.2, rel=0.03)


# What is refused.


def test_names_that_cannot_be_learned():
    with pytest.raises(DiffError, match=r"the model has no parameter conv\.wieght"):
        SparseDiff(Model(), NEVER, ["conv.wieght"])


@pytest.mark.parametrize("share", [0, 1.1])
def test_shares_that_cannot_be(share):
    with pytest.raises(DiffError, match="share of cells: expected above 0 and at most 1"):
        HashDiff(Model(), share)


def test_rows_that_have_grown_cannot_be_an_array():
    module = torch.nn.Linear(3, 4)
    learned = HashDiff(module, 0.5)
    old = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    with pytest.raises(DiffError, match="tensor weight has grown; it cannot be learned as an arr"):
        budget.make(old, learned.state(), None, learned.method())
