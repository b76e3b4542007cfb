"""Who may import whom: section 3 of the design. Every import counts, wherever it stands."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fedspeech", "strategies", "clients", "server")

COMMON = {"errors", "config", "seeding", "tensors", "units", "accelerator"}
"""What carries no knowledge of its own place in the way of the data."""
BELOW = {
    "apps": set(),
    "errors": set(),
    "seeding": set(),
    "tensors": {"errors"},
    # A budget is written the same way in the settings and on the command line.
    "config": {"errors", "diff"},
    "diff": {"layout", "tensors", "errors"},
    "racing": set(),
    "aggregation": {"racing", "tensors", "seeding", "errors"},
    "participation": {"config", "seeding", "errors"},
    "traces": {"diff", "errors"},
    "protocol": {"diff", "tensors", "errors"},
    "releases": {"diff", "signing", "tensors", "errors"},
    "budgets": {"config", "diff", "errors"},
    # What a device hears is read as a corpus is.
    "device": {"diff", "models", "features", "corpus", "decoding", "signing", *COMMON},
    "signing": {"errors"},
    "key_files": {"tensors", "errors"},
    "cluster": {"config", "errors"},
    # A run of diffs is nothing but trainings: it keeps its own folder, and says how far it is.
    # How a training goes about it follows from the memory that is free.
    "training": {
        *("models", "features", "corpus", "decoding", "evaluation", "diff"),
        *("run_folder", "progress", "machine", "cluster"),
        *COMMON,
    },
    "privacy": {"models", "features", "evaluation", *COMMON},
    # What a run is started with: its folder, its speakers, the names of its rules and its model.
    "simulation": {
        *(
            "apps",
            "cluster",
            "protocol",
            "training",
            "evaluation",
            "corpus",
            "rules",
            "models",
            "run_folder",
            "progress",
            "machine",
        ),
        *COMMON,
    },
}
"""For a part of fedspeech, the other parts that it may import."""

PARTS = "personalization bases exchange questions pushes personal delivery relations"
FLOWER = (
    *("clients", "server", "fedspeech.protocol", "fedspeech.simulation"),
    *(f"strategies.{name}" for name in PARTS.split()),
)
RAY = ("fedspeech.cluster", "fedspeech.simulation", "fedspeech.training.parallel")
RULES = tuple(f"strategies.{n}" for n in ("generic", "mean", "kbest", "dendrogram", "random"))


def sources() -> dict[str, str]:
    """Module name -> source."""
    found = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


def imports(module: str, source: str, packages: set[str]) -> Iterator[str]:
    """What the module imports; `packages` are the modules that a relative import starts from."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".")
            if module not in packages:
                here = here[:-1]
            above = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # Whether a name is a module or something in it makes no difference to the arrows.
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant))


def _name(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def part(module: str) -> str:
    """`training` of `fedspeech.training.loop`; nothing of another package's module."""
    package, _, rest = module.partition(".")
    return rest.split(".")[0] if package == "fedspeech" else ""


def violation(module: str, imported: str) -> str | None:
    """Which arrow the import goes against."""
    package, target = module.split(".")[0], imported.split(".")[0]
    allowed = {
        "fedspeech": {"fedspeech"},
        "strategies": {"strategies", "fedspeech"},
        "clients": {"clients", "fedspeech"},
        "server": {"server", "strategies", "fedspeech"},
    }[package]
    if target in PACKAGES and target not in allowed:
        return f"{package} must not import {target}"
    if target == "flwr" and not within(module, FLOWER):
        return "flwr has no place here"
    if target == "ray" and not within(module, RAY):
        return "ray has no place here"
    if module in RULES and target == "fedspeech" and part(imported) != "aggregation":
        return "a rule imports fedspeech.aggregation and nothing else of ours"
    here, there = part(module), part(imported)
    if here in BELOW and target == "fedspeech" and there not in {here, *BELOW[here]}:
        return f"fedspeech.{here} must not import fedspeech.{there}"
    return None


def edges(modules: Mapping[str, str]) -> dict[str, set[str]]:
    packages = {name for name in modules if any(n.startswith(f"{name}.") for n in modules)}
    return {name: set(imports(name, text, packages)) for name, text in modules.items()}


def violations(modules: Mapping[str, str]) -> list[str]:
    """One line for each import that goes against an arrow."""
    return [
        f"{module} imports {imported}: {why}"
        for module, targets in edges(modules).items()
        for imported in sorted(targets)
        if (why := violation(module, imported))
    ]


def reached(start: str, modules: Mapping[str, str]) -> set[str]:
    """Every module, ours or not, that importing the modules of a part brings along."""
    graph = edges(modules)
    found: set[str] = set()
    waiting = [name for name in modules if within(name, (start,))]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            # An import runs the packages above the module, too.
            waiting += [name.rpartition(".")[0]] if "." in name else []
            waiting += sorted(graph.get(name, ()))
    return found


def test_messages_are_looked_into_without_flowers_views():
    """They hold what the message carries until Python looks for cycles (`protocol.records_of`)."""
    views = ("array_records", "config_records", "metric_records")
    found = [
        f"{module} uses {node.attr}"
        for module, source in sources().items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr in views
    ]
    assert found == []


def test_no_import_goes_against_an_arrow():
    assert violations(sources()) == []


def test_the_parts_of_fedspeech_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for module, targets in edges(sources()).items():
        if here := part(module):
            there = {part(target) for target in targets if within(target, ("fedspeech",))}
            graph.setdefault(here, set()).update(there - {here, "", "__version__"})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_a_device_reaches_neither_flower_nor_ray_nor_training():
    found = reached("fedspeech.device", sources())
    assert "fedspeech.tensors" in found and "torch" in found
    assert not [m for m in found if within(m, ("flwr", "ray", "fedspeech.training", *PACKAGES[1:]))]


BARE = """
import importlib, pathlib, pkgutil, sys

def updated():
    import torch
    from fedspeech.device.store import GENERIC, Store
    from fedspeech.diff import budget

    store, old, new = Store(pathlib.Path(sys.argv[1])), {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    store.put(GENERIC, old)
    store.update(GENERIC, budget.make(old, new).data)
    assert store.get(GENERIC)["w"].tolist() == [1, 1, 1]
    store.rollback(GENERIC)
    assert store.get(GENERIC)["w"].tolist() == [0, 0, 0]

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("flwr", "ray") or name == "fedspeech.training":
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Block())
try:
    import flwr
except ModuleNotFoundError:
    import fedspeech.device
    for module in pkgutil.walk_packages(fedspeech.device.__path__, "fedspeech.device."):
        importlib.import_module(module.name)
    updated()
    loaded = [n for n in sys.modules if n.split(".")[0] in ("flwr", "ray")]
    loaded += [n for n in sys.modules if n.startswith("fedspeech.training")]
    print("fedspeech.device.store" in sys.modules, loaded)
"""


def test_a_device_runs_where_neither_flower_nor_ray_is_installed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BARE, tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.stdout == "True []\n", done.stderr


# The checker itself, on modules that nobody wrote.


@pytest.mark.parametrize(
    ("module", "source", "why"),
    [
        ("fedspeech.evaluation", "import flwr", "flwr has no place here"),
        ("fedspeech.evaluation", "import flwr.app as f", "flwr has no place here"),
        ("fedspeech.aggregation", "from flwr.app import Message", "flwr has no place here"),
        ("strategies.view", "def f():\n    from flwr import app", "flwr has no place here"),
        ("strategies.kbest", "import flwr", "flwr has no place here"),
        ("fedspeech.simulations", "import flwr", "flwr has no place here"),
        ("fedspeech.cli", "import ray", "ray has no place here"),
        ("server.app", "import ray", "ray has no place here"),
        ("clients.app", "if x:\n    import ray", "ray has no place here"),
        ("fedspeech.training.loop", "import ray", "ray has no place here"),
        ("fedspeech.cli", "import importlib\nimportlib.import_module('ray')", "ray has no place"),
        ("strategies.view", "import clients.app", "strategies must not import clients"),
        ("clients.app", "from strategies.mean import Mean", "clients must not import strategies"),
        ("clients.app", "import server", "clients must not import server"),
        ("strategies.mean", "import server", "strategies must not import server"),
        ("server.app", "from clients import speaker", "server must not import clients"),
        ("fedspeech.cli", "from server.app import app", "fedspeech must not import server"),
        ("fedspeech.testing", "import strategies", "fedspeech must not import strategies"),
        (
            "fedspeech.rules",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import clients",
            "fedspeech must not import clients",
        ),
        (
            "fedspeech.device.store",
            "from fedspeech.training.loop import Loop",
            "fedspeech.device must not import fedspeech.training",
        ),
        (
            "fedspeech.device.store",
            "from fedspeech import training",
            "fedspeech.device must not import fedspeech.training",
        ),
        (
            "fedspeech.device.store",
            "from ..training import loop",
            "fedspeech.device must not import fedspeech.training",
        ),
        (
            "fedspeech.device",
            "from .. import training",
            "fedspeech.device must not import fedspeech.training",
        ),
        (
            "fedspeech.aggregation",
            "import fedspeech.models",
            "fedspeech.aggregation must not import fedspeech.models",
        ),
        (
            "fedspeech.diff.sparse",
            "from fedspeech import seeding",
            "fedspeech.diff must not import fedspeech.seeding",
        ),
        (
            "fedspeech.training.loop",
            "from fedspeech.simulation import grid",
            "fedspeech.training must not import fedspeech.simulation",
        ),
        (
            "fedspeech.privacy.attack",
            "from fedspeech.training import loop",
            "fedspeech.privacy must not import fedspeech.training",
        ),
        (
            "strategies.random",
            "from fedspeech.tensors import sha256",
            "a rule imports fedspeech.ag",
        ),
    ],
)
def test_a_forbidden_import_is_found(module, source, why):
    modules = {"fedspeech.device.store": "", "fedspeech.device": "", module: source}
    (found,) = violations(modules)
    assert found.startswith(f"{module} imports ") and why in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("server.app", "import flwr, strategies.mean, fedspeech.simulation"),
        ("clients.app", "from flwr.app import Message\nfrom fedspeech.training import loop"),
        ("fedspeech.simulation.on_ray", "import ray, flwr"),
        ("fedspeech.training.parallel.workers", "import ray"),
        ("fedspeech.diff.sparse", "from . import wire\nfrom ..tensors import sha256"),
        ("fedspeech.device.store", "from ..tensors import sha256\nimport rayon, flwrs"),
        ("strategies.kbest", "from fedspeech.aggregation import GroupRule\nimport numpy"),
    ],
)
def test_an_allowed_import_is_not(module, source):
    assert violations({"fedspeech.diff": "", "fedspeech.diff.wire": "", module: source}) == []


def test_what_is_reached_is_followed_to_its_end():
    modules = {
        "fedspeech": "",
        "fedspeech.device": "",
        "fedspeech.device.store": "from fedspeech.features import batch",
        "fedspeech.features": "import fedspeech.corpus.cuts",
        "fedspeech.corpus": "import ray",
        "fedspeech.corpus.cuts": "",
        "fedspeech.training": "import flwr",
    }
    found = reached("fedspeech.device", modules)
    assert "ray" in found and "flwr" not in found and "fedspeech.training" not in found
