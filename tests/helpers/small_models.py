"""Two generations of a small model in which everything that can happen to a tensor happens, and
models that have learned nothing."""

from pathlib import Path

import numpy as np
import reference_diff
import torch

from fedspeech import models, tensors
from fedspeech.config.model import FeatureSettings, UnitSettings
from fedspeech.models.description import ModelDescription
from fedspeech.units import learn


def generations(seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(old, new)."""
    draw = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.1) -> torch.Tensor:
        return torch.from_numpy(scale * draw.standard_normal(shape).astype(np.float32))

    old = {
        "dense.bias": torch.zeros(24),
        "dense.weight": normal(24, 30),
        "gone": normal(4),
        "norm.count": torch.tensor(3),
        "norm.running_var": normal(24, scale=30).abs() + 5,
        "output.bias": normal(6),
        "output.weight": normal(6, 24),
        "same": normal(50, 50),
        "zero.weight": torch.zeros(12, 10),
    }
    new = {name: tensor.clone() for name, tensor in old.items() if name != "gone"}
    new["dense.bias"] = normal(24, scale=0.01)
    new["dense.weight"] += normal(24, 30, scale=0.01)
    new["fresh.scalar"] = torch.tensor(0.25)
    new["fresh.weight"] = normal(5, 7)
    new["norm.count"] = torch.tensor(4)
    new["norm.running_var"] *= 1.1
    new["output.bias"] = torch.cat([old["output.bias"], normal(2)])
    new["output.weight"] = torch.cat(
        [old["output.weight"] + normal(6, 24, scale=0.01), normal(2, 24)]
    )
    new["zero.weight"] = normal(12, 10)
    return old, new


def twin_generations(seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The same, and a second bias that has changed as the first one, but for how it is rounded."""
    old, new = generations(seed)
    old["dense.bias_again"] = torch.linspace(-1, 1, 24)
    new["dense.bias_again"] = old["dense.bias_again"] + (new["dense.bias"] - old["dense.bias"])
    return old, new


HALVES = {
    "dense": torch.float16,
    "fresh": torch.bfloat16,
    "norm.running_var": torch.bfloat16,
    "output": torch.bfloat16,
    "same": torch.float16,
    "zero": torch.float16,
}
"""dtypes of tensors whose names begin so."""


def half_generations(seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The same in half precision of both kinds, beside float32 and int64."""

    def halved(name: str, tensor: torch.Tensor) -> torch.Tensor:
        dtype = next((HALVES[begin] for begin in HALVES if name.startswith(begin)), tensor.dtype)
        return tensor.to(dtype)

    old, new = generations(seed)
    for model in (old, new):
        model["a.weight"], model["z.bias"] = (
            model["dense.weight"].clone(),
            model["dense.bias"].clone(),
        )
    old, new = ({n: halved(n, t) for n, t in model.items()} for model in (old, new))
    return old, new


def arrays(model: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """As the plain reader of diffs knows them."""
    return {name: _array(tensor) for name, tensor in model.items()}


def _array(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(reference_diff.BFLOAT16)
    return tensor.numpy()


def untrained(path: Path, model: str) -> None:
    """Write a model for tone words as a G; `tdnn` has 14 million parameters."""
    units = learn(["ba di gu ke lo mi"], UnitSettings(kind="words"))
    about = ModelDescription(model, FeatureSettings(), units)
    tensors.write(path, tensors.state(models.build(model, 40, len(units))))
    about.write(path.with_suffix(".json"))
