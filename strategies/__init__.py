"""Aggregation rules, one file each, and the Flower strategy that runs any of them.

Nobody who writes a rule has to import this package: rules are found by name (fedspeech.rules).
"""

from fedspeech.aggregation import AggregationRule
from strategies.dendrogram import Dendrogram
from strategies.generic import Generic
from strategies.kbest import KBest
from strategies.mean import Mean
from strategies.random import Random

STRATEGIES: dict[str, type[AggregationRule]] = {
    "generic": Generic,
    "mean": Mean,
    "kbest": KBest,
    "dendrogram": Dendrogram,
    "random": Random,
}
"""The five base models of the SPECOM 2021 paper, by the names that the entry points give them."""
