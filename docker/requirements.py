"""Print what an image has to have installed, out of pyproject.toml: `requirements.py IMAGE`."""

import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
LEFT_OUT: dict[str, set[str]] = {
    # Flower and what trains, aggregates and reports: a device hears, and applies diffs.
    "device": {"flwr", "jiwer", "matplotlib", "pytorch-optimizer", "scipy", "tensorboard"},
    # A box fine-tunes by PyTorch's own optimizer.
    "client": {"matplotlib", "pytorch-optimizer", "scipy", "tensorboard"},
    "server": set(),
}
EXTRAS = {"server": ["synthetic"]}
"""A first run's G is trained where the server is, on speech that is synthesized there."""
WITHOUT_RAY = {"client"}
"""Simulations are run where the server is."""


def requirements(image: str) -> list[str]:
    """The requirements of an image, as pip reads them."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    kept = [line for line in project["dependencies"] if _name(line) not in LEFT_OUT[image]]
    kept += [
        line for name in EXTRAS.get(image, []) for line in project["optional-dependencies"][name]
    ]
    return [line.replace("[simulation]", "") if image in WITHOUT_RAY else line for line in kept]


def _name(requirement: str) -> str:
    """`flwr` of `flwr[simulation]==1.41.0`."""
    end = next((i for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), None)
    return requirement[:end]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
