"""What goes wrong at one client or one worker stays there; below the quorum the run says why."""

import json
import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from faulty_client import ANY, APP, COHORT, COHORT_APP, POISONS, last_at_work, met, plan
from federations import (
    GENERIC_SPEAKERS,
    assert_same,
    journaled,
    ledger,
    made,
    results,
    settings,
    simulate,
)
from slow import slow

from fedspeech import protocol
from fedspeech.corpus.partition import pseudonym
from fedspeech.errors import RunError
from fedspeech.population import Population

GOOD = ("t03", "t04", "t05")
BAD = {name: f"t{number:02}" for number, name in enumerate([*POISONS, "raise", "no tensors"], 6)}
BASES = ["mean", "random"]
ALL = os.environ.get("FEDSPEECH_FAULTS") == "all"


@pytest.fixture(scope="module")
def crowd(tone_corpus, tmp_path_factory):
    """Three speakers for G, three good clients, and one for each fault."""
    folder = tmp_path_factory.mktemp("crowd")
    return tone_corpus(folder, GENERIC_SPEAKERS + len(GOOD) + len(BAD), per_round=3)


@pytest.fixture(scope="module")
def good_alone(crowd, tmp_path_factory):
    """A run in which only the good speakers take part."""
    experiment = settings(crowd, partition={"clients": GOOD}, federation={"bases": BASES})
    return simulate(experiment, tmp_path_factory.mktemp("good") / "run")


def without_traffic(folder) -> dict:
    """Results without what says who else was there."""
    found = results(folder)
    return {k: v for k, v in found.items() if k not in ("corpus", "failures", "bytes")}


def fault(kind: str, speaker: str, what: str, **more) -> dict:
    who = speaker if speaker == ANY else pseudonym(0, speaker)
    return {"kind": kind, "speaker": who, "fault": what, **more}


@pytest.mark.faults
def test_a_bad_answer_is_its_own_speakers_failure(crowd, good_alone, tmp_path):
    plan([fault(protocol.PERSONALIZE, speaker, what) for what, speaker in BAD.items()])
    experiment = settings(crowd, federation={"bases": BASES, "quorum": 0.2})
    run = simulate(experiment, tmp_path / "run", client=APP)
    assert met() == len(BAD) + experiment.engine.retries  # one of them raises
    failures = {one["speaker"]: one for one in results(run)["failures"]}
    reasons = {what: failures[pseudonym(0, speaker)]["reason"] for what, speaker in BAD.items()}
    assert reasons == {
        "nan": "tensor output.bias has values that are NaN or infinite",
        "inf": "tensor output.bias has values that are NaN or infinite",
        "shape": "tensor output.bias has shape (6,), the model has (7,)",
        "missing": "tensor output.bias is missing",
        "extra": "tensor output.more is not in the model",
        "empty": "tensor output.bias is missing",
        "raise": "RuntimeError: this client raises",
        "no tensors": "the reply carries no difference",
    }
    assert len(failures) == len(BAD)
    assert without_traffic(run) == without_traffic(good_alone)
    here, alone = made(run), made(good_alone)
    models = [name for name in here if name.startswith("models/")]
    assert sorted(models) == sorted(name for name in alone if name.startswith("models/"))
    assert all(here[name] == alone[name] for name in models)


@pytest.mark.faults
def test_a_device_that_cannot_say_who_it_is_is_its_own_failure(crowd, good_alone, tmp_path):
    plan([fault(protocol.DESCRIBE, "t06", "raise")])
    experiment = settings(crowd, partition={"clients": (*GOOD, "t06")}, federation={"bases": BASES})
    run = simulate(experiment, tmp_path / "run", client=APP)
    (failure,) = results(run)["failures"]
    assert {**failure, "reason": ""} == {
        "speaker": pseudonym(0, "t06"), "round": 0, "message": protocol.DESCRIBE, "reason": ""
    }  # fmt: skip
    assert failure["reason"].endswith(": RuntimeError: this client raises")
    assert without_traffic(run) == without_traffic(good_alone)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (protocol.WORD_ERRORS, "raise"),
        (protocol.WORD_ERRORS, "no text"),
        (protocol.INSTALL, "no text"),
        (protocol.EVALUATE, "no text"),
    ],
)
def test_who_drops_out_later_is_in_no_cell(crowd, tmp_path, kind, what):
    """The speaker's own answers of before are in none of the figures, nor is it a row of peers."""
    plan([fault(kind, "t04", what)])
    federation = {"bases": ["generic", "kbest"]}
    if kind == protocol.INSTALL:  # what the next round starts from
        federation |= {"rounds": 2, "continue_from": {"base": "kbest", "alpha": 0.5}}
    experiment = settings(crowd, partition={"clients": (*GOOD, "t06")}, federation=federation)
    run = simulate(experiment, tmp_path / "run", client=APP)
    found, gone = results(run), pseudonym(0, "t04")
    assert [(one["speaker"], one["message"]) for one in found["failures"]] == [(gone, kind)]
    others = {pseudonym(0, speaker) for speaker in (*GOOD, "t06")} - {gone}
    assert found["speakers"] == 3
    assert {row["speaker"] for row in found["per_speaker"]} == others
    assert set(found["peers"]["kbest"]) == set(found["peers"]["generic"]) == others
    assert set(found["dendrogram"]["speakers"]) == set(found["chosen_alpha"]["alphas"]) == others


@pytest.mark.faults
def test_who_is_tested_on_other_words_from_one_answer_to_the_next_drops_out(crowd, tmp_path):
    plan([fault(protocol.EVALUATE, "t04", "fewer words", times=1)])
    experiment = settings(crowd, partition={"clients": GOOD}, federation={"bases": ["mean"]})
    found = results(simulate(experiment, tmp_path / "run", client=APP))
    (failure,) = found["failures"]
    assert (failure["speaker"], failure["message"]) == (pseudonym(0, "t04"), protocol.EVALUATE)
    assert failure["reason"] == "its test_s has other words than in an answer of before"
    assert found["speakers"] == 2


@pytest.mark.faults
def test_a_poisoned_answer_to_a_flower_strategy_is_left_out(crowd, tmp_path):
    """FedAvg would average NaN, or give up the whole round for one answer of another form."""
    improve = {"class": "flwr.serverapp.strategy:FedAvg", "options": {}}
    federation = {"bases": ["generic"], "improve": improve, "quorum": 0.4}
    bad = {"nan": "t06", "shape": "t07", "no metrics": "t08", "raise": "t09"}
    everybody = (*GOOD, *bad.values())
    folders = {GOOD: tmp_path / "alone", everybody: tmp_path / "run"}
    plan([fault("train", speaker, what) for what, speaker in bad.items()])
    for clients, folder in folders.items():
        simulate(
            settings(crowd, partition={"clients": clients}, federation=federation), folder, APP
        )
    alone, run = (dict(Population(f / "models").generic()) for f in folders.values())
    # Flower adds up in the order in which it drew the nodes: equal but for the rounding.
    assert all(torch.allclose(alone[name], run[name], rtol=1e-5, atol=1e-7) for name in alone)
    trained = [row["speaker"] for row in ledger(folders[everybody]) if row["kind"] == "train"]
    assert set(trained) == {pseudonym(0, speaker) for speaker in everybody}  # what was sent counts
    failures = results(folders[everybody])["failures"]
    assert {(one["speaker"], one["round"], one["message"]) for one in failures} == {
        (pseudonym(0, speaker), 1, "train") for speaker in bad.values()
    }
    with pytest.raises(RunError, match=r"improve, round 1: 3 of 7 speakers .* at least 3\.5"):
        simulate(
            settings(
                crowd, partition={"clients": everybody}, federation={**federation, "quorum": 0.5}
            ),
            tmp_path / "too few",
            APP,
        )


@pytest.mark.faults
def test_below_the_quorum_the_run_says_why(crowd, tmp_path):
    plan([fault(protocol.PERSONALIZE, s, "raise") for s in ("t03", "t05")])
    experiment = settings(crowd, partition={"clients": GOOD}, federation={"quorum": 0.5})
    with pytest.raises(RunError) as told:
        simulate(experiment, tmp_path / "run", client=APP)
    first, *lost = str(told.value).splitlines()
    assert first == (
        "round 1, train.personalize: 1 of 3 speakers left, expected at least 1.5 "
        "(federation.quorum)"
    )
    assert sorted(lost) == sorted(
        f"  {pseudonym(0, speaker)}, round 1, train.personalize: RuntimeError: this client raises"
        for speaker in ("t03", "t05")
    )


RAISING = [
    (kind, speaker, 2)
    for kind, speaker in (
        (protocol.DESCRIBE, "t03"),
        (protocol.PERSONALIZE, "t04"),
        (protocol.WORD_ERRORS, "t05"),
        (protocol.EVALUATE, "t06"),
    )
]
"""As often as a client may raise."""


@pytest.mark.faults
@pytest.mark.parametrize("grid", ["in-process", "ray"])
def test_clients_that_raise_change_nothing(corpus, undisturbed, one_ray, tmp_path, grid):
    run = disturb(corpus, tmp_path / "run", RAISING, "raise", grid=grid)
    timing = json.loads((run / "timing.json").read_text())
    assert (timing["worker_deaths"], timing["client_errors"]) == (0, met())
    assert_same(run, undisturbed)


@slow
@pytest.mark.faults
def test_clients_that_raise_with_cohorts_change_nothing(
    corpus, undisturbed_cohorts, one_ray, tmp_path
):
    run = disturb(corpus, tmp_path / "run", RAISING, "raise", cohort=COHORT_SIZE)
    assert_same(run, undisturbed_cohorts)


# Workers that die.


FEW = [
    (protocol.PERSONALIZE, "t03", 2),
    (protocol.WORD_ERRORS, "t04", 1),
    (protocol.EVALUATE, "t06", 1),
    (protocol.EVALUATE, "t04", 1),
]
MANY = [
    (kind, speaker, 2)
    for kind in (protocol.PERSONALIZE, protocol.WORD_ERRORS, protocol.EVALUATE)
    for speaker in ("t03", "t04", "t05", "t06")
]
"""Every speaker's first message of every type dies as often as it may."""


COHORT_SIZE = 3


@pytest.fixture(scope="module")
def undisturbed_cohorts(corpus, tmp_path_factory) -> Path:
    """`undisturbed` with cohorts, in one process."""
    folder = tmp_path_factory.mktemp("undisturbed-cohorts") / "run"
    return simulate(settings(corpus, engine={"cohort": COHORT_SIZE}), folder)


def disturb(corpus, folder: Path, faults, what: str, seed: int = 0, **engine) -> Path:
    """A run on two workers with faults: (message type, speaker, how often)."""
    plan([fault(kind, speaker, what, times=n, seed=seed) for kind, speaker, n in faults])
    experiment = settings(corpus, engine={"grid": "ray", "workers": 2, **engine})
    simulate(experiment, folder, client=COHORT_APP if "cohort" in engine else APP)
    assert met() == sum(times for _, _, times in faults)
    return folder


def worker_deaths(folder: Path) -> int:
    return int(json.loads((folder / "timing.json").read_text())["worker_deaths"])


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3) if ALL else [0])
def test_killed_workers_change_nothing(corpus, undisturbed, one_ray, tmp_path, seed):
    run = disturb(corpus, tmp_path / "run", MANY if ALL else FEW, "die", seed)
    assert worker_deaths(run) == met()
    assert_same(run, undisturbed)


@slow
@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3) if ALL else [0])
def test_workers_killed_with_a_cohort_change_nothing(
    corpus, undisturbed_cohorts, one_ray, tmp_path, seed
):
    """While they fine-tune it, as often as one cohort may."""
    faults = [(COHORT, ANY, 2), *(one for one in FEW if one[0] != protocol.PERSONALIZE)]
    run = disturb(corpus, tmp_path / "run", faults, "die", seed, cohort=COHORT_SIZE)
    assert worker_deaths(run) == met()
    assert_same(run, undisturbed_cohorts)


def with_one_who_kills(crowd, **engine):
    return settings(
        crowd,
        partition={"clients": (*GOOD, "t06")},
        federation={"bases": BASES},
        engine={"grid": "ray", "workers": 2, "retries": 1, **engine},
    )


@pytest.mark.faults
def test_a_worker_that_always_dies_is_that_speakers_failure(crowd, good_alone, one_ray, tmp_path):
    plan([fault(protocol.PERSONALIZE, "t06", "die")])
    run = simulate(with_one_who_kills(crowd), tmp_path / "run", client=APP)
    assert met() == 2
    (failure,) = results(run)["failures"]
    assert failure == {
        "speaker": pseudonym(0, "t06"),
        "round": 1,
        "message": protocol.PERSONALIZE,
        "reason": "its worker died 2 times",
    }
    assert without_traffic(run) == without_traffic(good_alone)


@slow
@pytest.mark.faults
def test_a_cohort_that_always_dies_ends_the_run(crowd, one_ray, tmp_path):
    """Its speakers could be fine-tuned one by one, to other numbers than the run was to have."""
    count = len(GOOD) + 1
    plan([fault(COHORT, "t06", "die")])
    experiment = with_one_who_kills(crowd, cohort=count)
    said = rf"a cohort of {count} speakers: its worker died 2 times.* engine.cohort = {count // 2} "
    with pytest.raises(RunError, match=said):
        simulate(experiment, tmp_path / "run", client=COHORT_APP)
    assert met() == 2
    plan([])
    resumed = simulate(experiment, tmp_path / "run", client=COHORT_APP)
    straight = simulate(experiment, tmp_path / "straight")
    assert_same(resumed, straight)


HANGING_FEW = [(protocol.PERSONALIZE, "t05", 1)]
HANGING_MANY = [
    (protocol.PERSONALIZE, "t03", 2),
    (protocol.WORD_ERRORS, "t06", 1),
    (protocol.EVALUATE, "t04", 2),
]


@pytest.mark.faults
def test_workers_that_hang_change_nothing(corpus, undisturbed, one_ray, tmp_path):
    """They stop in the middle of a message, for ever, and hold the device's lock."""
    faults, seconds = (HANGING_MANY, 15.0) if ALL else (HANGING_FEW, 8.0)
    run = disturb(corpus, tmp_path / "run", faults, "hang", message_seconds=seconds)
    assert worker_deaths(run) >= met()  # on a busy machine others may be late, too
    assert_same(run, undisturbed)


@slow
@pytest.mark.faults
def test_a_worker_that_hangs_with_a_cohort_changes_nothing(
    corpus, undisturbed_cohorts, one_ray, tmp_path
):
    engine = {"message_seconds": 8.0, "cohort": COHORT_SIZE}
    run = disturb(corpus, tmp_path / "run", [(COHORT, ANY, 1)], "hang", **engine)
    assert worker_deaths(run) >= met()
    assert_same(run, undisturbed_cohorts)


class Killer(threading.Thread):
    """Kills the worker that was the last to begin a message, a moment after each sign of life."""

    def __init__(self, folder: Path, times: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.times, self.killed = folder, times, 0
        self.over = threading.Event()

    def run(self) -> None:
        draw, known = random.Random(0), 0
        while self.killed < self.times and not self.over.wait(0.005):
            if len(journaled(self.folder)) <= known:
                continue
            time.sleep(draw.uniform(0, 0.1))
            with suppress(ProcessLookupError, FileNotFoundError):
                os.kill(last_at_work(), signal.SIGKILL)
                self.killed += 1
            known = len(journaled(self.folder))


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.skipif(not ALL, reason="takes minutes; FEDSPEECH_FAULTS=all runs it")
def test_workers_killed_twenty_times_from_outside(crowd, one_ray, tmp_path):
    engine = {"grid": "ray", "workers": 2, "retries": 20}
    straight = simulate(settings(crowd), tmp_path / "straight")
    plan([{"kind": ANY, "speaker": ANY, "fault": "slow"}])
    killer = Killer(tmp_path / "run", 20)
    killer.start()
    try:
        run = simulate(settings(crowd, engine=engine), tmp_path / "run", client=APP)
    finally:
        killer.over.set()
    killer.join()
    assert killer.killed == 20
    timing = json.loads((run / "timing.json").read_text())
    assert timing["worker_deaths"] == 20
    assert_same(run, straight)
