"""Racing for the k best peers beside asking for all of them: decodings, and what is lost.

Both search the same table of what every P_s' makes of every speaker's utterances. The WER of a
choice of peers is the mean of their models' WER on all of the target's utterances, the mean over
targets; the gap is what lies between peers drawn at random and the exhaustive search. 240 of these
short utterances are some five minutes, the most that train_s has; 48 are one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments.benchmarks import confusion
from experiments.benchmarks.confusion import Size, Table
from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Row, Setting, say, spread
from fedspeech import racing, seeding
from strategies.kbest import KBest

TABLE = "Choosing the k best"
DECODINGS, GAP = "decodings, % of exhaustive", "gap recovered, %"
LIMIT = 1500.0
PANELS = (
    Panel(TABLE, "speakers", DECODINGS, ("search", "utterances")),
    Panel(TABLE, "speakers", GAP, ("search", "utterances")),
)


@dataclass(frozen=True)
class Plan:
    """The table's size; (speakers, k) and numbers of utterances that are searched; with how many
    seeds each is raced."""

    size: Size
    searches: tuple[tuple[int, int], ...]
    utterances: tuple[int, ...]
    repeats: int = 5


FULL = Plan(Size(12, 300, 40, 48, 240), ((20, 4), (100, 10), (300, 10)), (48, 240))
QUICK = Plan(Size(8, 40, 10, 24, 96), ((20, 4), (40, 10)), (48, 96), repeats=2)


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """Two rows for each number of speakers and of utterances: exhaustive, racing."""
    table = confusion.measure(setting.folder, plan.size, setting.seed)
    for utterances in plan.utterances:
        for speakers, k in plan.searches:
            say(f"racing: {speakers} speakers, k = {k}, {utterances} utterances")
            errors = table.errors[:speakers, :speakers, :utterances]
            part = Table(errors, table.words[:speakers, :utterances])
            yield from compare(part, KBest(k, search="racing"), setting.seed, plan.repeats)


def compare(table: Table, rule: KBest, seed: int, repeats: int) -> Iterator[Row]:
    """The exhaustive search with what random peers have, then racing, with `repeats` seeds."""
    rates = rate(table)
    others = _others(rates)
    best = np.sort(others, axis=1)[:, : rule.k].mean()
    random = others.mean()
    targets, utterances = table.words.shape
    whole = others.size * utterances
    about = {
        "table": TABLE,
        "speakers": rates.shape[1],
        "targets": targets,
        "utterances": utterances,
        "k": rule.k,
    }
    yield {
        **about,
        "search": "exhaustive",
        "decodings": whole,
        DECODINGS: 100.0,
        "WER of random peers, %": 100 * float(random),
        "WER of the peers, %": 100 * float(best),
        GAP: 100.0,
    }
    races = [_race(table, rates, rule, seed + i) for i in range(repeats)]
    found = [100 * float((random - race.rate) / (random - best)) for race in races]
    yield {
        **about,
        "search": "racing",
        "decodings": spread([race.decodings for race in races]),
        DECODINGS: spread([100 * race.decodings / whole for race in races]),
        "confidence decides, % of races": spread([100 * race.confident for race in races]),
        "WER of random peers, %": 100 * float(random),
        "WER of the peers, %": spread([100 * race.rate for race in races]),
        GAP: spread(found),
    }


def rate(table: Table) -> np.ndarray:
    """rates[s, p]: the WER of P_p on all utterances of target s."""
    return table.errors.sum(2).T / table.words.sum(1)[:, None]


def _others(rates: np.ndarray) -> np.ndarray:
    """Each target's row without its own model, (targets, speakers - 1)."""
    return rates[~np.eye(*rates.shape, dtype=bool)].reshape(len(rates), -1)


class Races(NamedTuple):
    """Of all targets: the mean WER of the chosen peers, the decodings, and the share of races that
    confidence alone decided."""

    rate: float
    decodings: int
    confident: float


def _race(table: Table, rates: np.ndarray, rule: KBest, seed: int) -> Races:
    chosen, races = [], []
    for s, words in enumerate(table.words):
        others = [f"{p:04}" for p in range(rates.shape[1]) if p != s]
        race = racing.race(
            others,
            rule.k,
            words,
            lambda names, chosen, s=s: table.errors[[int(n) for n in names], s][:, chosen],
            seeding.generator(seed, 1, f"{s:04}", "race"),
            rule.confidence,
            rule.budget,
        )
        chosen.append(rates[s, [int(name) for name in race.kept]].mean())
        races.append(race)
    confident = [race.confident for race in races]
    return Races(float(np.mean(chosen)), sum(r.decodings for r in races), float(np.mean(confident)))
