"""Aggregation rules by name: our own and those of other people's packages.

A package offers a rule by an entry point in the group `fedspeech.rules` of its pyproject.toml,
`name = "package:Class"`. Where it offers none, the rule's settings name the class.
"""

import difflib
import importlib.metadata
import inspect
import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any, NamedTuple

from fedspeech.aggregation import AggregationRule
from fedspeech.config import Config
from fedspeech.errors import RuleError

GROUP = "fedspeech.rules"
GENERIC = "generic"
"""The rule whose M_s is G."""


class Found(NamedTuple):
    """A rule that is installed."""

    name: str
    source: str
    """The distribution that offers it and its class, as `package:Class`."""
    summary: str
    """The first line of the class's docstring, or why the class cannot be used."""


def find(name: str, settings: Mapping[str, Any]) -> AggregationRule:
    """The rule of this name, made with its settings (the table `[rules.NAME]` of the TOML).

    The class is the one that `class = "package:Class"` names, else that of the entry point of this
    name; the remaining settings are the keyword arguments of its constructor. Raises RuleError
    where the rule is unknown, cannot be imported, is no AggregationRule or refuses its settings.
    """
    options = dict(settings)
    place = options.pop("class", None)
    found = _load(_installed(name) if place is None else _named(name, place))
    try:
        return found(**options)
    except (TypeError, ValueError) as error:
        takes = inspect.signature(found).replace(return_annotation=inspect.Signature.empty)
        raise RuleError(f"rule {name}: {error}; {found.__name__} takes {takes}") from error


def of_experiment(settings: Config) -> dict[str, AggregationRule]:
    """The rule of every base that an experiment compares; G itself comes first, for its WER and
    that of P_s. Raises RuleError as `find` does, for tables of bases that are not compared too.
    """
    for name in settings.rules:
        find(name, settings.rules[name])
    others = [base for base in settings.federation.bases if base != GENERIC]
    return {base: find(base, settings.rules.get(base, {})) for base in [GENERIC, *others]}


def available() -> list[Found]:
    """All rules that installed packages offer, by name; one that cannot be used is there too."""
    return [
        Found(entry.name, f"{entry.dist.name if entry.dist else '?'}, {entry.value}", _tell(entry))
        for entry in _entries()
    ]


def _entries() -> list[EntryPoint]:
    entries = importlib.metadata.entry_points(group=GROUP)
    return sorted(entries, key=lambda entry: (entry.name, entry.value))


def _installed(name: str) -> EntryPoint:
    entries = _entries()
    same = {entry.value: entry for entry in entries if entry.name == name}
    if len(same) > 1:
        raise RuleError(
            f"rule {name} is offered more than once ({', '.join(same)}); "
            'say which by class = "package:Class"'
        )
    if not same:
        known = sorted({entry.name for entry in entries})
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        hint = f"; the nearest known one is {near[0]}" if near else ""
        raise RuleError(
            f"unknown rule {name}{hint}; known are {', '.join(known) or 'none'}, "
            'and any class that the settings name by class = "package:Class"'
        )
    return same.popitem()[1]


def _named(name: str, place: object) -> EntryPoint:
    if not isinstance(place, str) or not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", place):
        raise RuleError(f'rule {name}: expected class = "package:Class", found {place!r}')
    return EntryPoint(name, place, GROUP)


def _load(entry: EntryPoint) -> type[AggregationRule]:
    try:
        found = entry.load()
    except Exception as error:  # whatever somebody else's module raises while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise RuleError(f"rule {entry.name}: cannot import {entry.value}: {reason}") from error
    if not (isinstance(found, type) and issubclass(found, AggregationRule)):
        raise RuleError(
            f"rule {entry.name}: {entry.value} is {found!r}, expected a class that derives from "
            "fedspeech.aggregation.AggregationRule"
        )
    return found


def _tell(entry: EntryPoint) -> str:
    try:
        return inspect.cleandoc(_load(entry).__doc__ or "").partition("\n")[0]
    except RuleError as error:
        return str(error)
