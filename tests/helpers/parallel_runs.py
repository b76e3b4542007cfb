"""A made-up run of kind `data-parallel`: what it could have left in its folder."""

import json
from pathlib import Path
from typing import Any

SECONDS = {"one": 8.0, "all.2": 5.0, "all.4": 4.0, "ad.4": 4.0, "all.4.big": 2.0,
           "all.4.held": 5.0, "all.4.held.slow": 40.0}  # fmt: skip
"""Of an epoch of 400 utterances, by row."""
MEANS = {"one": 10.0, "all.2": 11.0, "all.4": 12.0, "ad.4": 9.0, "all.4.big": 25.0,
         "all.4.held": 12.0, "all.4.held.slow": 13.0}  # fmt: skip


def around(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 2, "high": mean + 3}


def row(name: str) -> dict[str, Any]:
    mean, learners = MEANS[name], 1 if name == "one" else int(name.split(".")[1])
    return {
        "row": name,
        "way": "ad-psgd <random>" if name.startswith("ad") else "allreduce",
        "learners": learners,
        "joined": 128 if "big" in name else 32,
        "slowed": [1.0] * (learners - 1) + [10.0 if "slow" in name else 1.0],
        "processor": 0.5 if "held" in name else None,
        "left_apart": 0.75 if name.startswith("ad") else 0.0,
        **around(mean),
        "pooled": mean,
        "seeds": [mean - 1, mean + 1],
        "losses": [] if "big" in name else [4.0, 2.0, 1.0],
        "diverged": 0,
        "minus_one": None if name == "one" else around(mean - 10),
        "converges": mean <= 20 and "slow" not in name,
    }


def cell(name: str, seed: int) -> dict[str, Any]:
    learners = 1 if name == "one" else int(name.split(".")[1])

    def epoch(number: int) -> dict[str, Any]:
        # Learners start in the first one, which is no part of a pace.
        seconds = SECONDS[name] + (100 if number == 0 else 0)
        return {
            "starts": number == 0,
            **{"loss": 4.0 / (number + 1), "seconds": seconds, "utterances": 400, "updates": 16},
            **{"bytes": 10**6 * learners, "staleness": 1.5, "most_stale": 3 + number},
            **{"computing": [3.0] * learners, "waiting": [0.5] * (learners - 1) + [1.5]},
            "gap": number * 0.5 if name.startswith("ad") else 0.0,
            "consensus": number * 0.25 if name.startswith("ad") else 0.0,
        }

    return {"cell": f"{name}.seed-{seed}", "epochs": [epoch(i) for i in range(3)]}


def made_up() -> dict[str, Any]:
    return {
        **{"kind": "data-parallel", "name": "<made-up>", "seed": 3, "seeds": [3, 4]},
        **{"speakers": 5, "skipped": 0, "model": "tdnn-tiny", "parameters": 300_000},
        **{"batch_size": 32, "table": [row(name) for name in MEANS]},
    }


def timing() -> dict[str, Any]:
    curves = [
        {"way": way, "learners": n, "seconds": 8.0 / n}
        for way in ("allreduce", "ad-psgd <random>")
        for n in (1, 4, 128)
    ]
    simulated = {
        **{"processors": 2, "batch_size": 32, "curves": curves, "rows": {"one": 7.0, "all.4": 5.0}},
        "network": {"bandwidth": 1.25e9, "latency": 5e-5},
        "here": {"bandwidth": 1e9, "latency": 2e-4},
    }
    return {
        "stages": [{"stage": "training", "seconds": 12.0}],
        "cells": [cell(name, seed) for name in MEANS for seed in (3, 4)],
        "simulated": simulated,
    }


def leave(folder: Path, made_up, timing) -> Path:
    (folder / "results.json").write_text(json.dumps(made_up))
    (folder / "timing.json").write_text(json.dumps(timing))
    return folder
