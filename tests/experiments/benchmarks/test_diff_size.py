"""What an outsider sees of a diff is what was sent; the bound is that of exact arithmetic."""

import lzma
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.benchmarks import diff_size
from experiments.benchmarks.diff_size import Stored
from fedspeech import tensors
from fedspeech.diff import budget, inspect, wire
from fedspeech.diff.values import Kind, values


def models() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two layers that are fine-tuned, one that grows, and counters."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return scale * torch.randn(shape, generator=draw)

    old = {
        "a.weight": normal(80, 100, scale=0.1),
        "b.weight": normal(50, 60, scale=0.5),
        "norm.count": torch.tensor(3),
        "output.weight": normal(40, 30, scale=0.1),
        "same": normal(20, scale=1),
    }
    new = {name: tensor.clone() for name, tensor in old.items()}
    new["a.weight"] += normal(80, 100, scale=0.01)
    new["b.weight"] += normal(50, 60, scale=0.02)
    new["output.weight"] = torch.cat([old["output.weight"] * 1.01, normal(2, 30, scale=0.1)])
    new["fresh"] = normal(30, scale=0.1)
    new["norm.count"] += 1
    return old, new


def arrays(model) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.items()}


@pytest.mark.parametrize("share", [None, 0.1])
@pytest.mark.parametrize("kind", Kind)
def test_the_models_tell_what_was_sent(kind, share):
    """Positions and values that the diff itself says, by our own reader."""
    old, new = models()
    made = budget.make(old, new, None, kind=kind, share=share)
    seen = list(diff_size.changes(arrays(old), arrays(made.result), kind.name.lower()))
    segments = [s for entry in wire.decode(made.data).entries for s in entry.segments]
    assert len(seen) == len(segments)
    for each, segment in zip(seen, segments, strict=True):
        sent, step = everywhere(segment, kind), 1.0
        if kind == Kind.INT8:
            numbers = np.rint(sent / segment.scale).astype(int)
            step = segment.scale * math.gcd(*numbers.tolist())
        found = diff_size.as_float(each.values, kind.name.lower(), step)
        near = 1e-4 if kind == Kind.FP32 else 1e-6
        np.testing.assert_allclose(found, sent, rtol=near, atol=1e-8)
        assert ((found != 0) == (sent != 0)).mean() > 0.999


def everywhere(segment, kind: Kind) -> np.ndarray:
    """What a sparse segment adds to each value, float64."""
    found, added = np.zeros(segment.values), values(segment.codes, kind, segment.scale)
    if len(added) == segment.values:
        return added.astype(float)
    found[np.cumsum(segment.gaps.astype(int) + 1) - 1] = added
    return found


def test_values_of_another_kind_are_told():
    old, new = models()
    result = budget.make(old, new, None, kind=Kind.FP32).result
    for kind in ("fp16", "bf16", "int8"):
        with pytest.raises(
            ValueError, match=rf"tensor a.weight: \d+ of 8000 changes are none of {kind}"
        ):
            list(diff_size.changes(arrays(old), arrays(result), kind))


@pytest.mark.parametrize("least", [1, 2, 90])
def test_a_step_is_found_though_float32_has_rounded(least):
    draw = np.random.default_rng(least)
    step = float(np.float32(0.00113))
    old = draw.normal(0, 0.02, 5000).astype(np.float32)
    numbers = draw.integers(least, 128, 5000) * draw.choice([-1, 0, 1], 5000)
    new = old + (numbers.astype(np.float32) * np.float32(step))
    found = diff_size._stored("w", old, new, "int8")
    assert np.array_equal(found, numbers)


def stored(draw, count: int, among: int, kind: str) -> np.ndarray:
    found = np.zeros(among)
    found[draw.choice(among, count, replace=False)] = draw.normal(0, 0.1, count)
    return diff_size.as_stored(found, kind, 0.003)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "int8"])
def test_the_bound_by_whole_numbers(kind):
    draw = np.random.default_rng(0)
    parts = [Stored(stored(draw, *size, kind)) for size in ((300, 2000), (20, 50))]
    parts.append(Stored(stored(draw, 100, 100, kind), sparse=False))
    bits, sent = 0.0, []
    for each in parts:
        some = each.values[each.values != 0] if each.sparse else each.values
        bits += math.log2(math.comb(len(each.values), len(some))) if each.sparse else 0
        sent.append(some.tolist())
    if kind == "fp32":
        bits += 32 * sum(map(len, sent))
    else:
        together = [value for some in sent for value in some]
        bits += min(sum(exact(some, kind) for some in sent), exact(together, kind))
    assert diff_size.bound(parts, kind) == pytest.approx(bits / 8, rel=1e-9)


def exact(sent: list[float], kind: str) -> float:
    """Bits of the values and of their table."""
    counts = Counter(sent)
    bits = sum(n * math.log2(len(sent) / n) for n in counts.values())
    bits += math.log2(math.comb(255 if kind == "int8" else 65536, len(counts)))
    return bits + math.log2(math.comb(len(sent) - 1, len(counts) - 1))


@pytest.mark.parametrize("share", [0.01, 0.3])
@pytest.mark.parametrize("kind", Kind)
def test_it_agrees_with_what_diff_inspect_says(kind, share):
    """Two computations of the same; where little is sent, one table for all is smaller."""
    old, new = models()
    made = budget.make(old, new, None, kind=kind, share=share)
    ours = inspect.least(wire.decode(made.data))
    before, after, name = arrays(old), arrays(made.result), kind.name.lower()
    tensors = list(diff_size.changes(before, after, name))
    theirs = diff_size.bound(tensors, name) + len(diff_size.verbatim(before, after))
    assert theirs == pytest.approx(ours, rel=2e-3)


def test_general_compressors_get_the_array_of_all_values():
    draw = np.random.default_rng(0)
    parts = [Stored(stored(draw, 300, 20_000, "int8")), Stored(np.ones(3, np.int8))]
    content = b"".join(each.values.tobytes() for each in parts)
    found = diff_size.compressed(parts)
    assert found["xz -9"] == len(lzma.compress(content, preset=9))
    assert set(found) <= {"zstd -19", "xz -9"}


def test_zstd_where_it_is_installed():
    zstandard = pytest.importorskip("zstandard")
    found = diff_size.compressed([Stored(np.arange(1000, dtype=np.float32))])
    assert found["zstd -19"] == len(zstandard.compress(np.arange(1000, dtype="f4").tobytes(), 19))


@pytest.fixture
def files(tmp_path) -> list[str]:
    """OLD, NEW and the diff, and its kind of values."""
    draw = torch.Generator().manual_seed(0)
    old = {"w": torch.randn(300, 400, generator=draw)}
    made = budget.make(old, {"w": old["w"] * 1.01}, None, kind=Kind.INT8, share=0.2)
    tensors.write(tmp_path / "old", old)
    tensors.write(tmp_path / "new", made.result)
    (tmp_path / "x.diff").write_bytes(made.data)
    return [*(str(tmp_path / name) for name in ("old", "new", "x.diff")), "int8"]


def test_the_script(files, capsys):
    assert diff_size.main(files) == 0
    first, *others = capsys.readouterr().out.splitlines()
    diff = Path(files[2])
    size = diff.stat().st_size
    assert first.startswith(f"{size} bytes, 1.0") or first.startswith(f"{size} bytes, 0.9")
    assert others[0].startswith("xz -9: ")
    diff.write_bytes(diff.read_bytes() + bytes(size // 10))
    assert diff_size.main(files) == 1
    assert diff_size.main(files[:3]) == diff_size.main([*files[:3], "fp8"]) == 2


def test_nothing_of_ours_is_imported():
    code = (
        "import sys, experiments.benchmarks.diff_size\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('fedspeech', 'torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
