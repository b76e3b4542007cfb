"""Files written tensor by tensor, beside what safetensors itself writes of the whole."""

import pytest
import torch
from safetensors.torch import save

from fedspeech import layout, tensors
from fedspeech.errors import ModelError
from fedspeech.layout import DTYPES, Layout
from fedspeech.tensors import raw


def model() -> dict[str, torch.Tensor]:
    """Every dtype; names that JSON has to escape; nothing, a scalar and rows."""
    found = {"empty": torch.empty(0, 3), "turned": torch.arange(6.0).reshape(2, 3).T}
    for dtype in DTYPES:
        found[f'é"\\\n/{dtype}'] = torch.tensor([[0.0, 1], [2, 1], [0, 3]]).to(dtype)
        found[f"scalar.{dtype}"] = torch.tensor(1.0).to(dtype)
    return dict(sorted(found.items()))


def layout_of(model, notes) -> Layout:
    return Layout({name: (t.dtype, tuple(t.shape)) for name, t in model.items()}, notes)


@pytest.mark.parametrize("notes", [{}, {"format": "pt"}])
def test_it_is_the_file_that_safetensors_writes(tmp_path, notes):
    path, found = tmp_path / "x", model()
    runs = ((name, [raw(t)[:3], raw(t)[3:]]) for name, t in found.items())
    layout.write(path, layout_of(found, notes), runs)
    whole = {name: tensor.contiguous() for name, tensor in found.items()}
    assert path.read_bytes() == save(whole, notes or None)
    assert layout.read(path) == layout_of(found, notes)
    read = {
        name: (held.dtype, held.shape, b"".join(held.runs))
        for name, held in layout.stream(path, layout.read(path))
    }
    assert read == {n: (t.dtype, tuple(t.shape), raw(t).tobytes()) for n, t in found.items()}
    assert tensors.sha256(tensors.read(path)) == tensors.sha256(found)


def test_a_dtype_that_we_do_not_write_is_told(tmp_path):
    odd = torch.zeros(2).to(torch.float8_e4m3fnuz)
    (tmp_path / "x").write_bytes(save({"a": torch.zeros(2), "w": odd}))
    with pytest.raises(ModelError, match="x: tensor w is F8_E4M3FNUZ; expected BOOL, U8, "):
        layout.read(tmp_path / "x")


def test_the_layout_of_what_is_no_model_is_told(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="x: not a readable model"):
        layout.read(tmp_path / "x")
