"""What fits, and what is lost: against brute force and numpy."""

import lzma
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow import slow
from small_models import generations

from fedspeech.diff import methods, wire
from fedspeech.diff.apply import apply
from fedspeech.diff.budget import make, parse
from fedspeech.diff.compare import compare
from fedspeech.diff.contents import Form
from fedspeech.diff.search import STEPS, Precision, Search, _descend
from fedspeech.diff.values import Kind
from fedspeech.errors import DiffError
from fedspeech.tensors import sha256, size

HASH = partial(methods.Hashed, seed=9)


def pair(seed: int, values: int = 40_000) -> tuple[dict, dict]:
    """Two layers, and what batch normalization measured, of very different size."""
    draw = np.random.default_rng(seed)
    old = {
        "a.weight": draw.normal(0, 0.1, (values // 200, 100)),
        "b.weight": draw.normal(0, 0.5, (values // 200, 100)),
        "norm.running_var": draw.gamma(4, 20, 200),
    }
    new = {name: array * (1 + 0.02 * draw.laplace(size=array.shape)) for name, array in old.items()}
    return tuple(
        {name: torch.from_numpy(array.astype(np.float32)) for name, array in model.items()}
        for model in (old, new)
    )


def lost(made, old, new) -> float:
    """By plain numpy: each tensor in units of its root mean square."""
    left = total = 0.0
    for name, tensor in new.items():
        after, before = tensor.double().numpy(), old[name].double().numpy()
        unit = np.mean(after**2)
        left += ((made.result[name].double().numpy() - after) ** 2).sum() / unit
        total += ((after - before) ** 2).sum() / unit
    return left / total


@pytest.mark.parametrize(
    ("text", "bytes"),
    [
        ("500kB", 500_000),
        ("64KiB", 65_536),
        ("1.5 MB", 1_500_000),
        ("70000", 70_000),
        ("12B", 12),
        ("10x", 100_000),
        ("2.5x", 400_000),
        (" 1MiB ", 1_048_576),
        (".5GB", 500_000_000),
    ],
)
def test_budgets_in_words(text, bytes):
    assert parse(text, 1_000_000) == bytes


@pytest.mark.parametrize(
    "text", ["", "x", "10 x 3", "0", "-5", "1e6", "5 kb", "10X", "five", "0.0x"]
)
def test_budgets_that_make_no_sense(text):
    with pytest.raises(DiffError, match=r"budget: expected bytes .* or a ratio .*, found "):
        parse(text, 1000)


@pytest.mark.parametrize("ratio", [1.5, 4, 10, 30, 100])
@pytest.mark.parametrize("method", [methods.Sparse, HASH], ids=["sparse", "hash"])
def test_a_budget_is_kept_to_the_byte_and_used(method, ratio):
    old, new = pair(0)
    most = int(size(new) / ratio)
    made = make(old, new, most, method)
    assert len(made.data) <= most
    # Less is used only where there is no more to send: not even as many cells as values suffice.
    if ratio >= 10:
        assert len(made.data) > 0.97 * most
    assert made.lost == pytest.approx(lost(made, old, new), rel=1e-5, abs=1e-12)


@settings(max_examples=25)
@given(st.integers(200, 60_000), st.sampled_from([methods.Sparse, HASH]))
def test_no_diff_is_larger_than_its_budget(most, method):
    old, new = generations()
    try:
        made = make(old, new, most, method)
    except DiffError as error:
        assert f"a budget of {most} bytes is too small: the least is " in str(error)
    else:
        assert len(made.data) <= most


@pytest.mark.parametrize("method", [methods.Sparse, HASH], ids=["sparse", "hash"])
def test_the_least_possible_is_told_and_possible(method):
    old, new = generations()
    with pytest.raises(DiffError) as told:
        make(old, new, 50, method)
    whole = sum(t.nbytes for t in new.values() if t.dtype != torch.float32)
    found = re.fullmatch(
        r"a budget of 50 bytes is too small: the least is (\d+) bytes, "
        rf"{whole} of them tensors that go as they are",
        str(told.value),
    )
    least = int(found[1])
    assert len(make(old, new, least, method).data) <= least
    with pytest.raises(DiffError, match="too small"):
        make(old, new, least - 1, method)


@pytest.mark.parametrize("kind", [None, Kind.FP32])
@pytest.mark.parametrize(
    ("method", "steps"),
    [(methods.Sparse, 1.0), (methods.Sparse, 0.01), (HASH, 1.0)],
    ids=["sparse", "equal values", "hash"],
)
def test_the_least_possible_is_taken_by_devices(method, steps, kind):
    """A new tensor takes bytes that nothing else asks for: one for 256 values from zero."""
    draw = torch.Generator().manual_seed(1)
    fresh = torch.randn(300, 100, generator=draw)
    old = {"a": torch.ones(10)}
    new = {"a": torch.full((10,), 2.0), "b": (fresh * steps).round() if steps < 1 else fresh}
    new["b"][0, 0] = 2.0
    needed = math.ceil((30_000 - 10) / 256)
    for most in (50, 100, needed - 1):
        with pytest.raises(DiffError) as told:
            make(old, new, most, method, kind)
    least = int(re.search(r"too small: the least is (\d+) bytes$", str(told.value))[1])
    assert least >= needed
    with pytest.raises(DiffError, match=f"of {least - 1} bytes is too small: the least is {least}"):
        make(old, new, least - 1, method, kind)
    for most in (least, least + 1, least + 7):
        made = make(old, new, most, method, kind)
        assert needed <= len(made.data) <= most
        assert sha256(apply(old, made.data)) == sha256(made.result)


@slow
@pytest.mark.parametrize("ratio", [8, 25])
def test_no_other_precision_loses_much_less(ratio):
    """Brute force: every precision, and the most that fits by going through all amounts."""
    old, new = pair(1, 2000)
    most = size(new) // ratio
    made = make(old, new, most)
    best = math.inf
    for kind in Kind:
        for share in np.linspace(0.01, 1, 100):
            one = make(old, new, None, kind=kind, share=float(share))
            if len(one.data) <= most:
                best = min(best, one.lost)
    search = Search(old, compare(old, new), methods.Sparse, None, lambda _: None)
    for precision in STEPS[::4]:
        for amount in range(20, search.most, 40):
            diff = search.diff(amount, precision)
            if len(wire.encode(diff)) <= most:
                best = min(best, search.lost(diff))
    assert made.lost < 1.03 * best


def test_changes_of_few_sizes_are_sent_in_the_steps_that_lose_least():
    """As those of an update that was quantized before: the loss over all steps has many valleys."""
    draw = np.random.default_rng(0)
    old = {"w": torch.tensor(draw.normal(size=(100, 400)), dtype=torch.float32)}
    sizes = np.rint(draw.laplace(size=(100, 400)) * 1.5) * 0.013
    new = {"w": old["w"] + torch.tensor(sizes * (draw.random((100, 400)) < 0.1)).float()}
    budget = 160_000 // 100
    made = make(old, new, budget)
    search = Search(old, compare(old, new), methods.Sparse, None, lambda _: None)
    lost = []
    for precision in STEPS[::2]:
        amounts = range(0, 4001, 250)
        fits = [n for n in amounts if len(wire.encode(search.diff(n, precision))) <= budget]
        lost.append(search.lost(search.diff(max(fits), precision)))
    valleys = [i for i in range(1, len(lost) - 1) if lost[i - 1] > lost[i] < lost[i + 1]]
    assert len(valleys) > 1
    assert made.lost <= 1.02 * min(lost)


def test_the_search_looks_both_ways_before_it_goes_down():
    """Places and costs of the update of a small LSTM: its lowest is on the side that is worse far
    off, and the other side goes down as well."""
    costs = {16: 3.190e-1, 20: 2.456e-1, 24: 2.780e-1, 28: 2.682e-1, 32: 2.962e-1}
    steps = [Precision(Kind.INT8, 2 ** (eighth / 8)) for eighth in range(32, -41, -1)]

    def cost(precision):
        place = steps.index(precision)
        before, after = place // 4 * 4, place // 4 * 4 + 4
        known = [costs.get(each, 0.4) for each in (before, after)]
        return known[0] + (known[1] - known[0]) * (place - before) / 4

    assert _descend(cost, steps) == [steps[20]]


@pytest.mark.parametrize("method", [methods.Sparse, HASH])
def test_where_there_is_room_each_tensor_has_the_finest_steps(method):
    """A tensor of few large values beside one that changes little everywhere."""
    draw = np.random.default_rng(5)
    old = {name: torch.tensor(draw.normal(size=(60, 80))).float() for name in "ab"}
    change = draw.normal(size=(60, 80))
    new = {"a": old["a"] + torch.tensor(change * 1e-3).float(), "b": old["b"].clone()}
    new["b"][0, :40] += torch.tensor(draw.normal(size=40) * 30).float()
    most = len(make(old, new, None, method, Kind.INT8, 1.0).data)
    made = make(old, new, most, method, Kind.INT8)
    assert len(made.data) <= most
    assert made.lost <= make(old, new, None, method, Kind.INT8, 1.0).lost


def test_arrays_that_fit_whole_are_no_larger_than_serves():
    """Of multiplicative changes with a heavy tail, as many cells as values lose most of it."""
    draw = np.random.default_rng(3)
    old = {"w": torch.tensor(draw.normal(size=(100, 200)) * 0.1, dtype=torch.float32)}
    change = draw.normal(size=(100, 200)) * np.exp(2 * draw.normal(size=(100, 200))) * 0.01
    new = {"w": old["w"] + torch.tensor(change).float()}
    made = make(old, new, 10_000, HASH)
    all_cells = make(old, new, None, HASH, Kind.INT8, 1.0)
    assert len(made.data) <= 10_000
    assert len(all_cells.data) <= 10_000 and made.lost < 0.95 * all_cells.lost


@pytest.mark.parametrize("method", [methods.Sparse, HASH], ids=["sparse", "hash"])
@pytest.mark.parametrize("ratio", [5, 10, 20, 40])
def test_a_variance_does_not_fall_below_zero(method, ratio):
    """Where it becomes small beside the others, a step of int8 is larger than it is."""
    draw = np.random.default_rng(0)
    old, new = pair(4)
    variances = draw.gamma(2, 0.5, 3000)
    old["norm.running_var"] = torch.tensor(variances).float()
    shrunk = variances * draw.uniform(0.001, 0.05, 3000)
    new["norm.running_var"] = torch.tensor(shrunk).float()
    made = make(old, new, size(new) // ratio, method)
    assert float(made.result["norm.running_var"].min()) >= 0
    # Rounded to the nearest, some of them would be: the steps are as coarse as that.
    part = next(p for p in compare(old, new).parts if p.name == "norm.running_var")
    (entry,) = (e for e in wire.decode(made.data).entries if e.name == part.name)
    step = entry.segments[0].scale
    nearest = part.base + np.rint(part.change / step).astype(np.float32) * np.float32(step)
    assert made.lost > 0 and (nearest < 0).any()


def test_more_bytes_never_lose_more():
    old, new = pair(2)
    losses = [make(old, new, most).lost for most in (3000, 6000, 12_000, 24_000, 48_000)]
    assert losses == sorted(losses, reverse=True) and losses[0] > 2 * losses[-1]


def test_a_share_is_the_largest_changes():
    old, new = pair(3)
    made = make(old, new, share=0.1)
    parts = {n: (new[n] - old[n]).double() / new[n].double().square().mean().sqrt() for n in new}
    flat = torch.cat([p.abs().flatten() for p in parts.values()])
    least = flat.sort(descending=True).values[round(0.1 * len(flat)) - 1] * (1 - 1e-6)
    for name, part in parts.items():
        changed = made.result[name] != old[name]
        assert torch.equal(changed, part.abs() >= least)
    sent = sum(len(s.codes) for e in wire.decode(made.data).entries for s in e.segments)
    assert sent == round(0.1 * len(flat))


def test_a_share_of_cells_is_that_of_the_matrices():
    old, new = pair(4)
    diff = wire.decode(make(old, new, None, HASH, share=0.05).data)
    cells = {e.name: len(e.segments[0].codes) for e in diff.entries}
    assert cells == {"a.weight": 1000, "b.weight": 1000, "norm.running_var": 200}


def test_a_share_and_a_budget_choose_the_precision():
    old, new = pair(5)
    made = make(old, new, 6000, share=0.1)
    sent = sum(len(s.codes) for e in wire.decode(made.data).entries for s in e.segments)
    assert len(made.data) <= 6000 and 3900 < sent <= 4020


def test_where_everything_fits_everything_is_sent():
    """Also a variance that is small beside the others, which division makes matter."""
    draw = np.random.default_rng(4)
    variances = draw.gamma(4, 2, 96)
    variances[9] = 1e-3
    weights = np.where(draw.random(240_000) < 0.1, 1 + draw.random(240_000), 0)
    new = {
        "conv.weight": torch.from_numpy(weights.astype(np.float32)),
        "norm.running_var": torch.from_numpy(variances.astype(np.float32)),
    }
    made = make({}, new, size(new) // 10, kind=Kind.FP16)
    for name, tensor in new.items():
        assert torch.equal(made.result[name], tensor.half().float())


def test_where_little_fits_vectors_from_zero_come_first():
    draw = np.random.default_rng(5)
    variances = draw.gamma(4, 2, 96)
    variances[9] = 1e-3
    new = {
        "a.weight": torch.from_numpy(draw.normal(size=(100, 100)).astype(np.float32)),
        "norm.running_var": torch.from_numpy(variances.astype(np.float32)),
    }
    made = make({}, new, 1_500, kind=Kind.FP16)
    assert torch.equal(made.result["norm.running_var"], new["norm.running_var"].half().float())
    sent = made.result["a.weight"] != 0
    assert 100 < sent.sum() < 1_000
    sizes = new["a.weight"].abs()
    assert sizes[sent].min() > sizes[~sent].max()


@pytest.mark.parametrize("kind", Kind)
def test_a_kind_of_values_is_kept_to(kind):
    old, new = pair(6)
    made = make(old, new, 30_000, kind=kind)
    assert wire.decode(made.data).kind == kind and len(made.data) <= 30_000


def test_fine_values_where_there_is_room_and_coarse_ones_where_not():
    old, new = pair(7)
    plenty, little = (make(old, new, size(new) // ratio) for ratio in (1.05, 40))
    assert wire.decode(plenty.data).kind == Kind.FP32 and plenty.lost < 1e-12
    assert wire.decode(little.data).kind == Kind.INT8


def test_learned_arrays_are_sent_as_they_are():
    old, new = pair(8)
    fitted = wire.decode(make(old, new, None, HASH, share=0.1).data)
    arrays = {
        entry.name: np.arange(100, dtype=np.float32) / 1e4
        for entry in fitted.entries
        if entry.name.endswith("weight")
    }
    learned = make(old, new, None, partial(methods.Learned, arrays=arrays, seed=9))
    diff = wire.decode(learned.data)
    for entry in diff.entries:
        if entry.name in arrays:
            patterns = arrays[entry.name].view(np.uint32)
            assert entry.segments[0].codes.tolist() == (patterns << 1).tolist()
    # Under a budget they are stored less precisely, and nothing else changes.
    small = make(old, new, 900, partial(methods.Learned, arrays=arrays, seed=9))
    assert len(small.data) <= 900
    assert [len(e.segments[0].codes) for e in wire.decode(small.data).entries[:2]] == [100, 100]


@pytest.mark.parametrize(("zeros", "wanted"), [(0.9, "additive"), (0.02, "multiplicative")])
def test_of_a_matrix_with_scattered_zeros_the_better_form_is_sent(zeros, wanted):
    """No row is zero. Moved by a share of itself, and the zeros by as much as the others."""
    draw = torch.Generator().manual_seed(3)
    weight = torch.randn(200, 200, generator=draw)
    pruned = torch.rand(200, 200, generator=draw) < zeros
    change = torch.where(pruned, 0.1, 0.1 * weight.abs())
    old = {"w": weight.masked_fill(pruned, 0)}
    new = {"w": old["w"] + change}
    assert bool(old["w"].any(dim=1).all())
    lost = {}
    for form in (Form.ADDITIVE, Form.MULTIPLICATIVE):
        way = partial(_OneForm, form=form)
        lost[form.name.lower()] = make(old, new, None, way, share=0.05).lost
    assert min(lost, key=lost.get) == wanted and lost["multiplicative"] > 0.9 * zeros
    made = make(old, new, None, HASH, share=0.05)
    (entry,) = wire.decode(made.data).entries
    assert entry.segments[0].form.name.lower() == wanted
    assert made.lost == min(lost.values()) and made.lost < 0.5 * max(lost.values())


class _OneForm(methods.Hashed):
    """Fits one form, whatever it loses."""

    def __init__(self, comparison, form: Form) -> None:
        self._form = form
        super().__init__(comparison, seed=9)

    def _forms(self, part):
        return (self._form,)


def test_zeros_that_stay_zero_hold_up_nobody():
    old, new = pair(9)
    for model in (old, new):
        model["a.weight"][:, ::2] = 0
    entry, *_ = wire.decode(make(old, new, None, HASH, share=0.05).data).entries
    assert (entry.name, entry.segments[0].form) == ("a.weight", Form.MULTIPLICATIVE)


@pytest.mark.parametrize("hashes", [0, 17])
def test_the_number_of_hash_functions_is_bounded(hashes):
    with pytest.raises(DiffError, match=f"hash functions: expected 1 to 16, found {hashes}"):
        make(*pair(0), None, partial(methods.Hashed, seed=0, hashes=hashes))


@pytest.mark.parametrize("method", [methods.Sparse, HASH], ids=["sparse", "hash"])
def test_the_same_models_give_the_same_bytes(method):
    old, new = pair(9)
    first = make(old, new, 9000, method)
    again = make(dict(reversed(old.items())), {n: t.clone() for n, t in new.items()}, 9000, method)
    assert first.data == again.data and sha256(first.result) == sha256(again.result)


def test_sparse_keeps_more_of_a_difference_than_hash_when_nothing_is_learned():
    """The largest of independent changes hold most of their square; sums of cells do not."""
    old, new = pair(10)
    assert make(old, new, 8000).lost < make(old, new, 8000, HASH).lost


@pytest.mark.parametrize("kind", Kind)
def test_smaller_than_a_general_compressor_of_the_same_difference(kind):
    """xz gets what a diff without a format would be: the pruned difference, stored as ours is."""
    old, new = pair(11)
    made = make(old, new, None, kind=kind, share=0.1)
    flat = []
    for name in sorted(new):
        difference = (made.result[name] - old[name]).numpy().ravel()
        if kind == Kind.INT8:
            difference = np.rint(difference / np.abs(difference).max() * 127).astype(np.int8)
        if kind == Kind.FP16:
            difference = difference.astype(np.float16)
        if kind == Kind.BF16:
            difference = (difference.view(np.uint32) + 2**15 >> 16).astype(np.uint16)
        flat.append(difference)
    packed = lzma.compress(np.concatenate(flat).tobytes(), preset=9)
    assert len(made.data) < 0.95 * len(packed)


@pytest.mark.parametrize("method", [methods.Sparse, HASH], ids=["sparse", "hash"])
@pytest.mark.parametrize("kind", list(Kind))
def test_the_size_that_the_search_goes_by_is_nearly_what_is_encoded(method, kind):
    old, new = pair(3)
    for share in (0.002, 0.03, 0.3, 1.0):
        diff = wire.decode(make(old, new, method=method, kind=kind, share=share).data)
        size = len(wire.encode(diff))
        assert abs(wire.about(diff) - size) <= max(0.004 * size, 40)


@pytest.mark.parametrize("text", [400 * "9", "0." + 320 * "0" + "1x"])
def test_budgets_beyond_all_numbers(text):
    with pytest.raises(DiffError, match="a number of bytes that a file can have"):
        parse(text, 1000)


@pytest.mark.parametrize("most", [None, 800])
@pytest.mark.parametrize("method", [methods.Sparse, HASH], ids=["sparse", "hash"])
@pytest.mark.parametrize(
    ("before", "after"),
    [(1e-42, 1), (1, 1e-42), (1e38, 0), (1, 3e37), (1e-38, 1e38), (1e20, 1e-20)],
)
@pytest.mark.filterwarnings("error")
def test_values_at_the_ends_of_float32(before, after, method, most):
    """Beside values of a usual size, which no longer go along with the extreme ones for free."""
    draw = torch.Generator().manual_seed(3)
    noise = [torch.rand(20, 30, generator=draw) + 0.5 for _ in range(4)]
    old = {"extreme": before * noise[0], "usual": noise[1]}
    new = {"extreme": after * noise[2], "usual": noise[1] + 0.1 * noise[3]}
    made = make(old, new, most, method)
    assert sha256(apply(old, made.data)) == sha256(made.result)
    assert most is None or len(made.data) <= most
    assert 0 <= made.lost <= 1
    if most is None and method is methods.Sparse:
        assert made.lost < 1e-12


def test_neighbours_that_change_alike_take_less_than_compressors_need():
    """int8: filters whose taps change alike, sent with a code for every value, zeros as well."""
    draw = np.random.default_rng(4)
    old = draw.normal(0, 0.1, (400, 40, 5)).astype(np.float32)
    change = 0.01 * draw.normal(size=(400, 40, 1)) + 0.002 * draw.normal(size=old.shape)
    new = {"w": torch.from_numpy((old + change).astype(np.float32))}
    made = make({"w": torch.from_numpy(old)}, new, size(new) // 40)
    (entry,) = wire.decode(made.data).entries
    (segment,) = entry.segments
    assert len(segment.codes) == segment.values and np.mean(segment.codes == 0) > 0.5
    assert sha256(apply({"w": torch.from_numpy(old)}, made.data)) == sha256(made.result)
    assert len(lzma.compress(segment.codes.astype(np.uint8).tobytes(), preset=9)) > len(made.data)
