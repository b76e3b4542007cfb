"""What values are stored as, against torch's own conversions and plain arithmetic."""

import numpy as np
import pytest
import reference_diff
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fedspeech.diff.values import Kind, codes, kind, scale_of, values
from fedspeech.errors import DiffError

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
ODD = [
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    6e-8,
    3e-8,
    65504.0,
    65519.0,
    65520.0,
    -1e6,
    3.4028235e38,
    1.00390625,
]


def stored(numbers, kind: Kind, scale: float = 1.0) -> np.ndarray:
    return values(codes(np.array(numbers, np.float32), kind, scale), kind, scale)


@given(st.lists(FINITE, min_size=1))
def test_fp32_is_exact(numbers):
    wanted = np.array(numbers, np.float32)
    assert_array_equal(stored(numbers, Kind.FP32).view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize(
    ("kind", "dtype"), [(Kind.FP16, torch.float16), (Kind.BF16, torch.bfloat16)]
)
@given(numbers=st.lists(FINITE, min_size=1).map(lambda drawn: drawn + ODD))
def test_short_values_are_torchs_and_never_infinite(kind, dtype, numbers):
    largest = torch.finfo(dtype).max
    tensor = torch.tensor(numbers, dtype=torch.float32).clamp(-largest, largest)
    wanted = tensor.to(dtype).float().numpy()
    assert_array_equal(stored(numbers, kind).view(np.uint32), wanted.view(np.uint32))


@given(st.lists(FINITE, min_size=1), st.floats(2**-20, 2**20, width=32))
def test_int8_is_the_nearest_step_within_its_range(numbers, scale):
    found = stored(numbers, Kind.INT8, scale).astype(float) / scale
    wanted = np.clip(np.array(numbers, np.float32).astype(float) / scale, -127, 127)
    assert (np.abs(found - wanted) <= 0.5 + 1e-4).all()
    assert_allclose(found, np.rint(found), atol=1e-4)


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (1.0, Kind.FP32, 0x7F000000),
        (-1.0, Kind.FP32, 0x7F000001),
        (1.0, Kind.FP16, 0x7800),
        (-1.0, Kind.BF16, 0x7F01),
        (0.5, Kind.INT8, 2),
        (-0.5, Kind.INT8, 1),
        (-63.5, Kind.INT8, 253),
        (80.0, Kind.INT8, 254),
    ],
)
def test_codes_by_hand(number, kind, code):
    assert codes(np.array([number], np.float32), kind, 0.5).tolist() == [code]


@pytest.mark.parametrize("kind", Kind)
def test_codes_mean_the_same_to_a_plain_reader(kind):
    draw = np.random.default_rng(0)
    numbers = draw.normal(size=200).astype(np.float32)
    scale = scale_of(numbers, 0.0)
    coded = codes(numbers, kind, scale)
    plain = [reference_diff.value(code, int(kind), scale) for code in coded.tolist()]
    assert_array_equal(np.array(plain, np.float32), values(coded, kind, scale))
    assert_array_equal(values(coded.astype(np.uint16), kind, scale), plain) if kind else None


def test_the_scale_holds_the_largest_value_and_is_no_finer_than_asked():
    numbers = np.array([0.3, -2.54, 1.0], np.float32)
    assert scale_of(numbers, 0.0) == pytest.approx(0.02, rel=1e-6)
    assert codes(numbers, Kind.INT8, scale_of(numbers, 0.0)).max() == 253
    assert scale_of(numbers, 0.5) == 0.5
    assert scale_of(np.zeros(3, np.float32), 0.0) == 1.0


def test_names_of_kinds():
    assert [kind(name) for name in ("fp32", "fp16", "bf16", "int8")] == list(Kind)
    with pytest.raises(DiffError, match="expected one of fp32, fp16, bf16, int8, found 'int4'"):
        kind("int4")
