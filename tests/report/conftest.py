"""Made-up runs: what a personalization of n speakers could have left in its folder."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage

from fedspeech import seeding

BASES = ("generic", "mean", "kbest", "dendrogram", "random")
MODEL = 5_300_000
ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))
PULL = {"generic": 0.0, "mean": 3.0, "kbest": 6.5, "dendrogram": 3.6, "random": 2.4}


def _wer(mean: float, spread: float) -> dict[str, float]:
    return {
        "mean": round(mean, 4),
        "pooled": round(mean * 0.97, 4),
        "low": round(mean - spread, 4),
        "high": round(mean + 1.2 * spread, 4),
    }


def _mix(base: str, alpha: float, generic: float, personal: float) -> float:
    away = 1 - alpha
    return (
        personal
        + (generic - PULL[base] - personal) * away**2
        - (1.1 if base == "kbest" else 0.5) * (alpha * away * 2)
    )


def made_up(speakers: int = 8) -> dict[str, Any]:
    """The results of a run that never was, with every optional key."""
    draw = seeding.generator(7, 0, "", f"report {speakers}")
    ids = [f"speaker-{i:02d}" for i in range(1, speakers + 1)]
    generic = np.round(draw.gamma(6, 3, speakers), 4)
    personal = np.round(generic * draw.uniform(0.15, 1.05, speakers), 4)
    g, p = float(generic.mean()), float(personal.mean())
    grid = [(base, alpha, _mix(base, alpha, g, p)) for base in BASES for alpha in ALPHAS]
    table = [{"base": b, "alpha": a, **_wer(wer, 2.1 + wer / 9)} for b, a, wer in grid]
    chosen = [{"base": b, "alpha": "chosen", **_wer(p - 0.1 * k, 2.2)} for k, b in enumerate(BASES)]
    best = [min((cell for cell in grid if cell[0] == base), key=lambda c: c[2]) for base in BASES]
    differences = [
        {"base": b, "alpha": a, "against": "personal", "mean": wer - p, "low": wer - p - 0.6,
         "high": wer - p + 0.55}
        for b, a, wer in [*best, ("kbest", "chosen", p - 0.2)]
    ]  # fmt: skip
    alphas = {name: float(draw.choice(ALPHAS)) for name in ids}
    return {
        "kind": "personalization",
        "name": "made-up",
        "speakers": speakers,
        "seed": 0,
        "corpus": [
            {"part": part, "speakers": n, "utterances": 130 * n, "words": 911 * n,
             "hours": 0.08 * n,
             "seconds_per_speaker": {"mean": 281.25, "least": 210.5, "most": 300.0}}
            for part, n in (("generic", 11), ("development", 1), ("train_s", speakers),
                            ("test_s", speakers))
        ],
        "generic": _wer(g, 3.9),
        "personal": _wer(p, 2.4),
        "gain": {"mean": g - p, "low": g - p - 2.5, "high": g - p + 2.8},
        "table": table + chosen,
        "differences": differences,
        "chosen_alpha": {"base": "kbest", "mean": 9.0, "low": 8.0, "high": 10.0, "alphas": alphas},
        "layer_correlation": [
            {"layer": f"tdnn.{i}", "pearson": None if i == 5 else round(0.55 - 0.07 * i, 4)}
            for i in range(9)
        ] + [{"layer": "output", "pearson": -0.1234}],
        "pairs": min(speakers * (speakers - 1), 500),
        "dendrogram": {
            "speakers": ids,
            "linkage": linkage(draw.normal(size=(speakers, 5)), "ward").tolist(),
        },
        "peers": {"kbest": {s: sorted(set(ids[:4]) - {s})[:3] for s in ids}},
        "per_speaker": [
            {"speaker": s, "generic": float(a), "personal": float(b),
             "chosen": round(float(b) * 0.95, 4), "words": 311, "seconds": 281.2}
            for s, a, b in zip(ids, generic, personal, strict=True)
        ],
        "failures": [
            {"speaker": "speaker-99", "round": 1, "message": "train.personalize",
             "reason": "tensor tdnn.0.weight has values that are NaN or infinite"}
        ],
        "participation": {
            "seconds": 151.25,
            "rounds": [
                {"stage": stage, "round": number, "asked": speakers, "in_time": speakers - late,
                 "late": late, "arrived": number - 1, "at_work": 0, "not_available": 2,
                 "not_sampled": 1, "seconds": seconds}
                for stage, number, late, seconds in (
                    ("improve", 1, 1, 40.0), ("personalization", 1, 2, 60.0),
                    ("personalization", 2, 0, 51.25))
            ],
            "never": [{"speaker": "speaker-98", "why": {"after the deadline": 1,
                                                        "not sampled": 1}}],
        },
        "loss_curves": {
            "generic": {"dev_wer": [None, 88.1, 61.0, 40.2, 30.5, 24.4, 21.0, 19.5, 19.7],
                        "train_loss": [3.1, 2.2, 1.4, 0.9, 0.6, 0.45, 0.38, 0.33, 0.31]}
        },
        "bytes": {"down": 3 * MODEL * speakers, "up": MODEL * speakers, "full_model": MODEL},
    }  # fmt: skip


@pytest.fixture
def results() -> dict[str, Any]:
    """Of eight speakers."""
    return made_up(8)


def leave(folder: Path, results: dict[str, Any]) -> Path:
    """Write the folder that such a run would have left."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    with (folder / "ledger.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["round", "speaker", "direction", "kind", "bytes"])
        for row in results["per_speaker"]:
            for direction, kind, size in (
                ("down", "generic", MODEL), ("up", "personal", MODEL),
                ("down", "candidates", 37_100_000), ("up", "word_errors", 512),
                ("down", "base", MODEL),
            ):  # fmt: skip
                writer.writerow([1, row["speaker"], direction, kind, size])
    timing = {
        "stages": [{"stage": s, "seconds": t} for s, t in (
            ("corpus", 12.34), ("features", 3.2), ("generic", 241.7), ("personalize", 96.15),
            ("candidates", 33.0), ("mixes", 41.9))],
        "peak_memory_mib": 812.4, "retries": 0,
    }  # fmt: skip
    (folder / "timing.json").write_text(json.dumps(timing), encoding="utf-8")
    environment = {"versions": {"python": "3.11.7", "torch": "2.11.0"}, "seed": 0, "git": None}
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    (folder / "config.toml").write_text('name = "made-up"\n\n[corpus]\nrecipe = "jsonl"\n')
    return folder


@pytest.fixture
def folder(tmp_path: Path, results: dict[str, Any]) -> Path:
    """The folder of a finished run."""
    return leave(tmp_path / "made-up", results)
