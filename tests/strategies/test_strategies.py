"""What the five rules of the paper have in common, and the shortest of them, `generic`."""

import ast
import tomllib
from pathlib import Path

import pytest

from fedspeech.testing import DummyFederation, check_rule
from strategies import STRATEGIES

ROOT = Path(__file__).parents[2]
WITH_K = ("kbest", "dendrogram", "random")


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_keeps_what_every_rule_promises(name):
    check_rule(STRATEGIES[name])


@pytest.mark.parametrize("name", WITH_K)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_each_keeps_its_promises_for_every_k(name, k):
    check_rule(STRATEGIES[name], k=k)


def test_the_entry_points_are_the_same_five():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["entry-points"]["fedspeech.rules"]
    assert declared == {n: f"{c.__module__}:{c.__name__}" for n, c in STRATEGIES.items()}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_rule_is_pure(name):
    tree = ast.parse((ROOT / "strategies" / f"{name}.py").read_text())
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    allowed = ("fedspeech.aggregation", "fedspeech.errors", "numpy", "scipy", "collections")
    assert [module for module in modules if not module.startswith(allowed)] == []


def test_the_defaults_are_those_of_the_paper():
    groups = {name: rule().largest_group() for name, rule in STRATEGIES.items()}
    assert groups == {"generic": None, "mean": None, "kbest": 10, "dendrogram": 50, "random": 50}


@pytest.mark.parametrize("name", WITH_K)
@pytest.mark.parametrize("k", [0, -1, 2.5, "3", True, None])
def test_k_has_to_be_a_whole_number_of_at_least_one(name, k):
    with pytest.raises(ValueError, match=f"whole number of at least 1, found {k!r}"):
        STRATEGIES[name](k=k)


@pytest.mark.parametrize("name", WITH_K)
@pytest.mark.parametrize("k", [7, 8, 1000])
def test_k_from_the_number_of_others_on_takes_all_of_them(name, k):
    federation = DummyFederation(speakers=8)
    for speaker, weights in federation.peers(STRATEGIES[name](k=k)).items():
        assert weights == {other: 1 / 7 for other in federation.speakers if other != speaker}


@pytest.mark.parametrize("name", WITH_K)
def test_k_peers_weigh_the_same(name):
    for weights in DummyFederation(speakers=8).peers(STRATEGIES[name](k=3)).values():
        assert list(weights.values()) == [1 / 3] * 3


def test_peer_sets_differ_where_k_is_smaller_than_the_number_of_others():
    federation = DummyFederation(speakers=12)
    rules = {n: rule(k=3) if n in WITH_K else rule() for n, rule in STRATEGIES.items()}
    peers = {name: federation.peers(rule) for name, rule in rules.items()}
    sets = {n: tuple(frozenset(p[s]) for s in federation.speakers) for n, p in peers.items()}
    assert len(set(sets.values())) == len(STRATEGIES) == 5
    assert {name: len(sets[name][0]) for name in sets} == {
        "generic": 0,
        "mean": 11,
        "kbest": 3,
        "dendrogram": 3,
        "random": 3,
    }


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_speaker_alone_gets_the_generic_model(name):
    federation = DummyFederation(speakers=1)
    base = federation.bases(STRATEGIES[name]())["s00"]
    assert all(base[n].equal(tensor) for n, tensor in federation.generic.items())
    assert federation.exchanges == 0


def test_generic_gives_everybody_the_generic_model_bit_for_bit():
    federation = DummyFederation(speakers=4)
    for base in federation.bases(STRATEGIES["generic"]()).values():
        assert list(base) == list(federation.generic)
        assert all(base[n].equal(tensor) for n, tensor in federation.generic.items())
