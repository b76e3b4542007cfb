"""Racing for the k best peers beside asking for all of them: decodings, and what is lost.

Both search the same table of what every P_s' makes of every speaker's utterances. The WER of a
choice of peers is the mean of their models' WER on all of the target's utterances, the mean over
targets; the gap is what lies between peers drawn at random and the exhaustive search.
"""

from collections.abc import Iterator
from dataclasses import dataclass

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
    Panel(TABLE, "speakers", DECODINGS, ("search",)),
    Panel(TABLE, "speakers", GAP, ("search",)),
)


@dataclass(frozen=True)
class Plan:
    """The table's size, (speakers, k) of each search, and with how many seeds it is raced."""

    size: Size
    searches: tuple[tuple[int, int], ...]
    repeats: int = 5


FULL = Plan(Size(12, 300, 48), ((20, 4), (100, 10), (300, 10)))
QUICK = Plan(Size(8, 40, 48, generic_epochs=10), ((20, 4), (40, 10)), repeats=2)


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """Two rows for each number of speakers: exhaustive, racing."""
    table = confusion.measure(setting.folder, plan.size, setting.seed)
    for speakers, k in plan.searches:
        say(f"racing: {speakers} speakers, k = {k}")
        part = Table(table.errors[:speakers, :speakers], table.words[:speakers])
        yield from compare(part, KBest(k, search="racing"), setting.seed, plan.repeats)


def compare(table: Table, rule: KBest, seed: int, repeats: int) -> Iterator[Row]:
    """The exhaustive search with what random peers have, then racing, with `repeats` seeds."""
    rates = rate(table)
    everybody = _others(rates)
    best = np.sort(everybody, axis=1)[:, : rule.k].mean()
    random = everybody.mean()
    whole = everybody.size * table.words.shape[1]
    about = {"table": TABLE, "speakers": len(rates), "k": rule.k}
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
    found = [100 * float((random - chosen) / (random - best)) for chosen, _ in races]
    yield {
        **about,
        "search": "racing",
        "decodings": spread([decodings for _, decodings in races]),
        DECODINGS: spread([100 * decodings / whole for _, decodings in races]),
        "WER of random peers, %": 100 * float(random),
        "WER of the peers, %": spread([100 * float(chosen) for chosen, _ in races]),
        GAP: spread(found),
    }


def rate(table: Table) -> np.ndarray:
    """rates[s, p]: the WER of P_p on all utterances of speaker s."""
    return table.errors.sum(2).T / table.words.sum(1)[:, None]


def _others(rates: np.ndarray) -> np.ndarray:
    """Each speaker's row without its own model, (speakers, speakers - 1)."""
    return rates[~np.eye(len(rates), dtype=bool)].reshape(len(rates), -1)


def _race(table: Table, rates: np.ndarray, rule: KBest, seed: int) -> tuple[float, int]:
    """The mean WER of the peers that racing chooses for all speakers, and the decodings."""
    chosen, decodings = [], 0
    for s, words in enumerate(table.words):
        others = [f"{p:04}" for p in range(len(rates)) if p != s]
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
        decodings += race.decodings
    return float(np.mean(chosen)), decodings
