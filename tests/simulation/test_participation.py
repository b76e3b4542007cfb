"""Federations in which not everybody takes part: real runs, and who holds which P_s by hand."""

import json
import shutil
from collections import defaultdict
from pathlib import Path

import faulty_client
import numpy as np
import pytest
import torch
from federations import (
    LONG,
    Around,
    apart,
    assert_same,
    ledger,
    made,
    results,
    settings,
    simulate,
    watch_stages,
)
from slow import slow

from clients import cohort
from fedspeech import config, features, protocol
from fedspeech import corpus as corpora
from fedspeech.corpus.partition import partition, pseudonym
from fedspeech.errors import RunError
from fedspeech.models import description as descriptions
from fedspeech.population import Population
from fedspeech.tensors import add, subtract
from fedspeech.training.personal import fine_tune

CLIENTS = ("t03", "t04", "t05", "t06", "t07", "t08")
NAMES = {speaker: pseudonym(0, speaker) for speaker in CLIENTS}
SPEAKERS = {name: speaker for speaker, name in NAMES.items()}
ALPHA, DEADLINE = 0.25, 20.0
AVAILABLE = ("t03,1,3", "t04,1,1", "t04,3,3", "t05,2,3", "t06,1,1", "t07,2,2")
"""t08 never is."""
FACTORS = ("t03,1", "t04,1", "t05,1", "t06,5", "t07,5", "t08,1")
"""A speaker's speech is 5 to 8 s: t06 and t07 need two deadlines."""
ROUNDS = [
    {"t03": 1, "t04": 1},
    {"t03": 2, "t05": 2, "t06": 1},
    {"t03": 3, "t04": 3, "t05": 3, "t07": 2},
]
"""Whose answer is taken in each round, and the round that it belongs to."""
INSTALLED = [{"t03"}, {"t03", "t04", "t05"}]
"""Who is sent M_s after a round: has a P_s, and is asked in the next one."""


@pytest.fixture(scope="module")
def six(tone_corpus, tmp_path_factory) -> Path:
    """Three speakers for G and six clients."""
    return tone_corpus(tmp_path_factory.mktemp("six"), 3 + len(CLIENTS))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    trace, factors = folder / "trace.csv", folder / "factors.csv"
    trace.write_text("\n".join(("speaker,from,until", *AVAILABLE)) + "\n")
    factors.write_text("\n".join(("speaker,factor", *FACTORS)) + "\n")
    return {"available": str(trace), "factors": str(factors)}


@pytest.fixture(scope="module")
def experiment(six, files):
    participation = {
        **files, "cost": 1.0, "exchange": 0.0, "deadline": DEADLINE, "late": "next-round"
    }  # fmt: skip
    federation = {
        "rounds": 3,
        "bases": ["mean"],
        "alphas": [0.5],
        "continue_from": {"base": "mean", "alpha": ALPHA},
        "participation": participation,
    }
    return settings(six, federation=federation)


@pytest.fixture(scope="module")
def watched(experiment, tmp_path_factory) -> tuple[Path, list[tuple[str, int, int]]]:
    """A run that nothing interrupts, and its stages."""
    with pytest.MonkeyPatch.context() as patch:
        stages = watch_stages(patch)
        return simulate(experiment, tmp_path_factory.mktemp("partly") / "run"), stages


@pytest.fixture(scope="module")
def partly(watched) -> Path:
    return watched[0]


def of_kind(folder: Path, kind: str) -> dict[int, dict[str, int]]:
    """Round -> speaker -> bytes sent down, of one type of message."""
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for row in ledger(folder):
        if (row["kind"], row["direction"]) == (kind, "down"):
            found[int(row["round"])][SPEAKERS[row["speaker"]]] = int(row["bytes"])
    return found


# What is asked, and what is told of it.


def test_who_is_asked_in_which_round(partly):
    tuned, installed = of_kind(partly, protocol.PERSONALIZE), of_kind(partly, protocol.INSTALL)
    assert [set(tuned[number]) for number in (1, 2, 3)] == [set(one) for one in ROUNDS]
    assert [set(installed[number]) for number in (1, 2)] == INSTALLED
    assert set(installed) == {1, 2}
    judged = of_kind(partly, protocol.EVALUATE)
    assert {number: set(by) for number, by in judged.items()} == {3: set(CLIENTS) - {"t08"}}


def test_each_stage_knows_from_the_start_how_many_are_asked(watched):
    _, stages = watched
    tuned = [total for name, total, _ in stages if name == protocol.PERSONALIZE]
    assert tuned == [len(one) for one in ROUNDS]
    assert [total for name, total, _ in stages if "install" in name] == [len(i) for i in INSTALLED]
    assert {name for name, _, _ in stages} > {"query.word_errors", "evaluate.personal mean"}
    assert all(total == done for _, total, done in stages)


def test_g_goes_along_when_a_speaker_is_asked_first(partly):
    model = results(partly)["bytes"]["full_model"]
    held: set[str] = set()
    for _, sent in sorted(of_kind(partly, protocol.PERSONALIZE).items()):
        assert {speaker for speaker, bytes in sent.items() if bytes > model} == set(sent) - held
        held |= set(sent)


def test_the_rounds_are_told(partly):
    speech = {SPEAKERS[r["speaker"]]: r["seconds"] for r in results(partly)["per_speaker"]}
    assert all(DEADLINE < 5 * speech[slow] < 2 * DEADLINE for slow in ("t06", "t07"))
    # t07 is done so long after the third round has begun; the others answer sooner or later.
    left = 5 * speech["t07"] - DEADLINE
    third = max(left, *(speech[s] for s in ("t03", "t04", "t05")))
    found = results(partly)["participation"]
    keys = ("stage", "round", "asked", "in_time", "late", "arrived", "at_work", "not_available")
    assert [tuple(row[key] for key in keys) for row in found["rounds"]] == [
        ("personalization", 1, 3, 2, 1, 0, 0, 3),
        ("personalization", 2, 3, 2, 1, 1, 0, 2),
        ("personalization", 3, 3, 3, 0, 1, 0, 2),
    ]
    seconds = [row["seconds"] for row in found["rounds"]]
    assert seconds == [DEADLINE, DEADLINE, pytest.approx(third, abs=1e-3)]
    assert found["seconds"] == pytest.approx(sum(seconds), abs=1e-5)
    assert found["never"] == [{"speaker": NAMES["t08"], "why": {"not available": 3}}]


def test_the_comparison_judges_who_has_a_p(partly):
    found = results(partly)
    judged = {NAMES[speaker] for speaker in CLIENTS} - {NAMES["t08"]}
    assert {row["speaker"] for row in found["per_speaker"]} == judged
    assert found["speakers"] == 5
    assert found["failures"] == []
    assert set(found["peers"]["mean"]) == judged
    assert all(set(peers) == judged - {s} for s, peers in found["peers"]["mean"].items())
    page = (partly / "report.html").read_text()
    assert "Who took part" in page
    assert NAMES["t08"] in page


# The models.


@pytest.fixture(scope="module")
def tune(experiment, six, partly, tmp_path_factory):
    """P_s of a round that begins with a model, without clients, server or strategies."""
    parts = partition(corpora.load(experiment.corpus), experiment.partition)
    clients = {client.speaker: client for client in parts.clients}
    description = descriptions.read(partly / "models" / "generic.json")
    generic = dict(Population(partly / "models").generic())
    cache = tmp_path_factory.mktemp("features")

    def tune(speaker, begin, number):
        client, asked = clients[speaker], experiment.personal
        speeds = asked.augmentation.speeds
        heard = features.prepare(
            client.train, description.features, speeds, cache, reference=client.train
        )
        draws = (0, number, NAMES[speaker], "personalize")
        model = fine_tune(begin, description, asked, heard, draws, 0.0).model
        return dict(add(generic.items(), dict(subtract(model.items(), generic))))

    return tune


def average(models):
    return {
        name: torch.stack([m[name].double() for m in models]).mean(0).float() for name in models[0]
    }


def between(left, right, alpha):
    return {
        name: (alpha * left[name].double() + (1 - alpha) * right[name].double()).float()
        for name in left
    }


def test_who_holds_which_p(partly, tune):
    population = Population(partly / "models")
    generic, held = dict(population.generic()), {}
    for answers in ROUNDS:
        begin = {}
        for speaker, asked_in in answers.items():
            begin[speaker] = generic
            if speaker in held:
                others = [model for other, model in held.items() if other != speaker]
                begin[speaker] = between(held[speaker], average(others), ALPHA)
                assert asked_in > 1
        held |= {speaker: tune(speaker, begin[speaker], answers[speaker]) for speaker in answers}
    files = {path.stem for path in (partly / "models" / "personal").iterdir()}
    assert files == {NAMES[speaker] for speaker in held} == set(NAMES.values()) - {NAMES["t08"]}
    for speaker, model in held.items():
        found = dict(population.personal(NAMES[speaker]))
        # Where a gradient is nothing but rounding, Adam's first step may go either way.
        assert apart(found, model, generic) < 1e-2, speaker
        others = [tuned for other, tuned in held.items() if other != speaker]
        assert min(apart(found, other, generic) for other in others) > 0.1


def test_what_is_late_is_lost_where_it_is_dropped(experiment, six, files, tmp_path):
    """The same without t06 and t07: they never have a P_s, although one was asked for one."""
    federation = experiment.federation.model_dump(by_alias=True)
    federation["participation"]["late"] = "drop"
    folder = simulate(settings(six, federation=federation), tmp_path / "run")
    tuned = of_kind(folder, protocol.PERSONALIZE)
    in_time = [{s for s, n in one.items() if n == i} for i, one in enumerate(ROUNDS, 1)]
    assert [set(tuned[number]) for number in (1, 2, 3)] == in_time
    found = results(folder)["participation"]["never"]
    assert {SPEAKERS[one["speaker"]]: one["why"] for one in found} == {
        "t06": {"after the deadline": 1, "not available": 2},
        "t07": {"after the deadline": 1, "not available": 2},
        "t08": {"not available": 3},
    }


# Interrupted, elsewhere, by default.

KILLED = """
import os, signal, sys
from pathlib import Path
from federations import Around, simulate
from fedspeech import config

class Killed(Around):
    left = int(sys.argv[3])

    def received(self, reply):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return reply

simulate(config.load(Path(sys.argv[1])), Path(sys.argv[2]), around=Killed)
"""


@slow
def test_killed_again_and_again_it_ends_with_the_same_bytes(experiment, partly, child, tmp_path):
    """In the first round, in the second, and while M_s is sent; an answer is lost each time.

    The first six answers to each process say who is there.
    """
    file, folder = tmp_path / "small.toml", tmp_path / "run"
    file.write_text(config.dump(experiment))
    for answers in (2, 3, 5):
        done = child(KILLED, file, folder, len(CLIENTS) + answers)
        assert done.returncode == -9, done.stderr
    tuned = {path.name for path in (folder / "models" / "personal").iterdir()}
    assert 0 < len(tuned) < len(CLIENTS)
    simulate(experiment, folder)
    assert_same(folder, partly)
    name = "participation.json"
    assert (folder / name).read_bytes() == (partly / name).read_bytes()


def failing(experiment, speaker: str, quorum: float, folder: Path) -> Path:
    """A run in which a speaker raises whenever it is to fine-tune."""
    fault = {"kind": protocol.PERSONALIZE, "speaker": NAMES[speaker], "fault": "raise"}
    faulty_client.plan([fault])
    federation = experiment.federation.model_copy(update={"quorum": quorum})
    changed = experiment.model_copy(update={"federation": federation})
    return simulate(changed, folder, faulty_client.APP)


@pytest.mark.faults
def test_the_quorum_is_of_those_who_are_asked_in_the_round(experiment, tmp_path):
    """t03, t05 and t07 are asked in round 2; t07 is late. Of all four so far three are left."""
    with pytest.raises(RunError) as told:
        failing(experiment, "t05", 0.5, tmp_path / "run")
    first, second = str(told.value).splitlines()
    assert first == (
        "round 2, train.personalize: 1 of 3 speakers that were asked answered in time, expected "
        "at least 1.5 (federation.quorum)"
    )
    assert second.startswith(f"  {NAMES['t05']}, round 2, train.personalize: RuntimeError")


@pytest.mark.faults
def test_who_has_failed_is_not_asked_again(experiment, tmp_path):
    folder = failing(experiment, "t05", 0.3, tmp_path / "run")
    tuned = of_kind(folder, protocol.PERSONALIZE)
    first, second, third = map(set, ROUNDS)
    # What was sent to it when it failed has been sent.
    assert [set(tuned[number]) for number in (1, 2, 3)] == [first, second, third - {"t05"}]
    assert [(f["speaker"], f["round"]) for f in results(folder)["failures"]] == [(NAMES["t05"], 2)]
    judged = {SPEAKERS[row["speaker"]] for row in results(folder)["per_speaker"]}
    assert judged == {"t03", "t04", "t06", "t07"}


class Stop(Exception):
    pass


class Stopped(Around):
    """Stops the run when the third round begins."""

    def sent(self, message):
        if (message.metadata.message_type, message.metadata.group_id) == (
            protocol.PERSONALIZE,
            "3",
        ):
            raise Stop


def test_a_p_that_was_lost_after_its_round_is_named(experiment, tmp_path):
    """t06 took part in the second round only; nobody would ask for its P_s again."""
    with pytest.raises(Stop):
        simulate(experiment, tmp_path / "run", around=Stopped)
    path = tmp_path / "run" / "models" / "personal" / f"{NAMES['t06']}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\0\0\0\0")
    with pytest.raises(RunError, match=rf"{path.name}: missing or damaged"):
        simulate(experiment, tmp_path / "run")
    path.write_bytes(content)
    simulate(experiment, tmp_path / "run")


def test_who_came_in_the_last_round_only_can_train_again(experiment, partly, tmp_path, caplog):
    """t07's first answer is of the round that has not ended when the run is resumed."""
    folder = Path(shutil.copytree(partly, tmp_path / "run"))
    models = folder / "devices" / NAMES["t07"] / "models"
    state = json.loads((models / "state.json").read_text())
    path = models / f"{state['difference']}.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    (folder / "results.json").unlink()
    simulate(experiment, folder)
    assert f"{path}: missing or damaged; speaker {NAMES['t07']} is asked again" in caplog.messages
    assert_same(folder, partly)


def test_a_trace_that_was_changed_is_not_gone_on_with(experiment, partly, files, tmp_path):
    folder, trace = tmp_path / "run", Path(files["available"])
    text = trace.read_text()
    with pytest.raises(Stop):
        simulate(experiment, folder, around=Stopped)
    trace.write_text(text.replace("t04,3,3", "t04,2,3"))
    try:
        with pytest.raises(RunError, match="who takes part is not what this run began with"):
            simulate(experiment, folder)
    finally:
        trace.write_text(text)


def test_a_cohort_is_fine_tuned_with_those_who_are_asked(experiment, tmp_path, monkeypatch):
    """All in one: t04 sits the second round out, in which t06 answers to the first one."""
    stacks = []
    together = cohort.fine_tune_together

    def watch(description, asked, tunings):
        stacks.append({(tuning.name[2], tuning.name[1]) for tuning in tunings})
        return together(description, asked, tunings)

    monkeypatch.setattr(cohort, "fine_tune_together", watch)
    engine = experiment.engine.model_copy(update={"cohort": len(CLIENTS)})
    folder = simulate(experiment.model_copy(update={"engine": engine}), tmp_path / "run")
    assert results(folder)["failures"] == []
    # First what judges alpha, then P_s.
    assert (
        stacks[::2]
        == stacks[1::2]
        == [{(NAMES[speaker], began) for speaker, began in one.items()} for one in ROUNDS]
    )


def test_where_everybody_takes_part_nothing_else_changes(corpus, undisturbed_long, tmp_path):
    """The way through the plan gives the bytes of the way without one."""
    there = simulate(settings(corpus, federation={**LONG, "participation": {}}), tmp_path / "run")
    found, before = made(there), made(undisturbed_long)
    said = results(there)
    rounds = said.pop("participation")["rounds"]
    assert [(row["asked"], row["in_time"]) for row in rounds] == [(4, 4)] * 4
    assert said == results(undisturbed_long)
    assert "participation" not in results(undisturbed_long)
    assert not (undisturbed_long / "participation.json").exists()
    assert {name for name in found if found[name] != before[name]} == {"results.json"}


# Sampling, and a strategy of Flower's.


class Trained(Around):
    """The models of Flower's plain route as they come back, with their weights, round by round."""

    def __init__(self, grid):
        super().__init__(grid)
        self.answers: dict[int, dict[int, tuple[int, dict]]] = defaultdict(dict)
        self.begun: dict[int, dict] = {}
        self.judged: dict[int, set[int]] = defaultdict(set)
        self.nodes: dict[int, str] = {}

    def sent(self, message):
        kind = message.metadata.message_type
        if kind == protocol.PLAIN_TRAIN:
            number = message.content["config"]["server-round"]
            self.begun[number] = protocol.unpack(message.content["arrays"])
        if kind == protocol.PLAIN_EVALUATE:
            number = message.content["config"]["server-round"]
            self.judged[number].add(message.metadata.dst_node_id)

    def received(self, reply):
        node = reply.metadata.src_node_id
        if reply.metadata.message_type == protocol.DESCRIBE:
            self.nodes[node] = protocol.text(reply.content)["speaker"]
        if reply.metadata.message_type == protocol.PLAIN_TRAIN:
            weight = reply.content["metrics"]["num-examples"]
            answers = self.answers[max(self.begun)]
            answers[node] = weight, protocol.unpack(reply.content["arrays"])
        return reply


@pytest.fixture(scope="module")
def sampled(six, files, tmp_path_factory):
    """Half of those that are there, of whom t06 and t07 are late: folder, and what was trained."""
    participation = {
        **files, "available": 0.9, "sample": 0.5, "cost": 1.0, "exchange": 0.0,
        "deadline": DEADLINE,
    }  # fmt: skip
    federation = {
        "rounds": 3,
        "bases": ["mean"],
        "alphas": [0.5],
        "continue_from": {"base": "mean", "alpha": ALPHA},
        "participation": participation,
        "quorum": 0.3,
        "improve": {"class": "flwr.serverapp.strategy:FedAvg", "rounds": 2},
    }
    grids = []

    def watch(grid):
        grids.append(Trained(grid))
        return grids[0]

    experiment = settings(six, seed=SAMPLED_SEED, federation=federation)
    folder = tmp_path_factory.mktemp("sampled") / "run"
    return simulate(experiment, folder, around=watch), grids[0], experiment


SAMPLED_SEED = 0
"""With it one of the late is sampled in a round that improves G."""


def rounds_of(folder: Path, stage: str) -> list[dict]:
    kept = json.loads((folder / "participation.json").read_text())
    return [one for one in kept["rounds"] if one["stage"] == stage]


def test_half_of_those_that_are_there_are_asked(sampled):
    folder, _, _ = sampled
    for one in [*rounds_of(folder, "improve"), *rounds_of(folder, "personalization")]:
        away = [s for s, why in one["absent"].items() if why == "not available"]
        assert len(one["asked"]) == round((len(CLIENTS) - len(away)) / 2)
        late = {s for s, why in one["absent"].items() if why == "after the deadline"}
        slow = {pseudonym(SAMPLED_SEED, s) for s in ("t06", "t07")}
        assert late == slow & set(one["asked"])


def test_g_is_the_average_over_those_who_answered_in_time(sampled):
    folder, trained, _ = sampled
    plan = rounds_of(folder, "improve")
    assert any(set(one["asked"]) & set(one["absent"]) for one in plan), "nobody is late"
    after = {1: trained.begun[2], 2: dict(Population(folder / "models").generic())}
    for number, one in enumerate(plan, 1):
        answers = {trained.nodes[node]: found for node, found in trained.answers[number].items()}
        assert set(answers) == set(one["asked"])
        in_time = sorted(set(one["asked"]) - set(one["absent"]))
        assert {trained.nodes[node] for node in trained.judged[number]} == set(in_time)
        weights = [answers[speaker][0] for speaker in in_time]
        for name, tensor in after[number].items():
            models = np.stack([answers[s][1][name].double().numpy() for s in in_time])
            expected = np.average(models, axis=0, weights=weights)
            assert np.allclose(tensor.double().numpy(), expected, rtol=1e-4, atol=1e-6), name


def test_who_sits_out_keeps_its_p(sampled, tmp_path):
    """Two rounds of the same run end as the third one begins."""
    folder, _, experiment = sampled
    federation = experiment.federation.model_copy(update={"rounds": 2})
    shorter = simulate(experiment.model_copy(update={"federation": federation}), tmp_path / "run")
    *earlier, last = rounds_of(folder, "personalization")
    took_part = set(last["asked"]) - set(last["absent"])
    before, now = ({p.stem: p.read_bytes() for p in (f / "models/personal").iterdir()} for f in
                   (shorter, folder))  # fmt: skip
    ever = set().union(*(set(one["asked"]) - set(one["absent"]) for one in earlier))
    assert set(before) == ever
    assert set(now) == ever | took_part
    changed = {speaker for speaker in before if before[speaker] != now[speaker]}
    assert changed == ever & took_part
    assert ever - took_part
    assert changed
