"""The versions that `make venv` and the images install are ones that pyproject.toml allows."""

import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def pins() -> dict[str, str]:
    lines = (ROOT / "docker" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_what_the_project_asks_for_is_pinned_within_its_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = list(chain(project["dependencies"], *project["optional-dependencies"].values()))
    wrong = [
        (line, pins().get(requirement.name))
        for line in asked
        for requirement in [Requirement(line)]
        if not requirement.specifier.contains(pins().get(requirement.name, "0"))
    ]
    assert not wrong
