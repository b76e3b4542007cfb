"""From where a training is gone on with: what lies in its folder decides."""

import json
import logging
import socket
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import ray
import torch

from fedspeech.config.data_parallel import DataParallelConfig
from fedspeech.errors import CorpusError, DivergedError, FedSpeechError, RunError
from fedspeech.training import checkpoint
from fedspeech.training.parallel import cell as cells
from fedspeech.training.parallel import crew as crews
from fedspeech.training.parallel import generation as generations
from fedspeech.training.parallel import learner as learners
from fedspeech.training.parallel.cell import _Cell
from fedspeech.training.parallel.cells import Cell, train_all
from fedspeech.training.parallel.epochs import Epochs
from fedspeech.training.parallel.learner import Ended, Learner, Report, Training
from fedspeech.training.parallel.watch import Measured, Pace, Watch

TASK = SimpleNamespace(
    fingerprint=lambda settings, seed: "same",
    share=lambda settings, seed: SimpleNamespace(parts_per_epoch=10),
)


def cell(folder, method: str, told: int, kept: dict[int, list[int]], learners: int = 2) -> _Cell:
    """Told of so many epochs; `kept` are the epochs of whose ends each learner has a checkpoint."""
    (folder / "cells").mkdir(exist_ok=True)
    parallel = {"method": method, "learners": learners}
    settings = DataParallelConfig.model_validate({"parallel": parallel, "comparison": None})
    training = Training(settings, 0, folder, "one")
    text = json.dumps({"epochs": [{"seconds": 2.0}] * told})
    (folder / "cells" / "one.epochs.json").write_text(text)
    for learner, epochs in kept.items():
        for epoch in epochs:
            training.checkpoint(learner, epoch).write_text("")
    return _Cell(None, TASK, training, SimpleNamespace(tell=lambda said: None))


@pytest.mark.parametrize(
    ("method", "told", "kept", "goes_on"),
    [
        ("ring", 2, {0: [1, 2], 1: [1, 2]}, 2),
        ("ring", 2, {0: [1, 2], 1: [1]}, 1),  # killed before the second one had written its own
        ("ring", 2, {0: [2], 1: [1]}, 2),  # one was lost: the other's model serves
        ("ring", 2, {}, 0),
        ("allreduce", 2, {0: [1, 2]}, 2),  # one has what all have
        ("bmuf", 2, {0: [1, 2], 1: [1]}, 1),
        ("parameter-server", 3, {0: [2, 3], 1: [2], 2: [2, 3]}, 2),
        ("parameter-server", 3, {0: [2, 3], 1: [2, 3]}, 0),  # the server's own is what counts
    ],
)
def test_it_goes_on_from_where_all_were_if_there_is_such_a_place(
    tmp_path, method, told, kept, goes_on
):
    first, epoch = cell(tmp_path, method, told, kept)._from_disk()
    assert (first, epoch or 0) == (10 * goes_on, goes_on)


@pytest.mark.parametrize("restarts", [False, True])
def test_what_is_learned_again_has_taken_its_time(tmp_path, monkeypatch, restarts):
    """It counts for the epoch that comes next, of a run that goes on, and after a death."""
    one = cell(tmp_path, "bmuf", 3, {0: [1], 1: [1]})
    one.shown = SimpleNamespace(skip=lambda: None, advance=lambda said: None)
    one.crew = SimpleNamespace(bury=lambda number: None)
    deaths = iter([{0: "killed"}] if restarts else [])

    def run(first, epoch):
        assert (first, epoch) == (10, 1)
        for number in (0, 1):
            one._told(Report(number, 1, Measured(), None))
        if dead := next(deaths, None):
            return cells.Outcome(dead=dead)
        return cells.Outcome(ended=[Ended(0, None, 20), Ended(1, None, 20)])

    monkeypatch.setattr(cells, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    monkeypatch.setattr(one, "_run", run)
    monkeypatch.setattr(
        one, "_prepare", lambda numbers, again=False: setattr(one, "_members", numbers)
    )
    monkeypatch.setattr(one, "_average", dict)
    # Two of the three epochs that were told of, of 2 s each, have no checkpoint.
    assert [epoch["seconds"] for epoch in one.train().epochs] == [2.0, 4.0]


def test_a_damaged_record_is_told(tmp_path):
    one = cell(tmp_path, "ring", 1, {})
    one._record.write_text("[")
    with pytest.raises(RunError, match=r"one\.epochs\.json: damaged .*; remove it, and go on"):
        one._from_disk()


def test_what_learners_kept_that_were_ahead_is_forgotten(tmp_path):
    one = cell(tmp_path, "ad-psgd", 2, {0: [2, 3, 11], 1: [2]})
    one._from_disk()
    kept = sorted(path.name for path in (tmp_path / "cells").glob("*.checkpoint"))
    assert kept == [f"one.learner-{learner}.epoch-2.checkpoint" for learner in (0, 1)]


def test_nothing_is_removed_that_an_epoch_needs_which_is_over_for_all(tmp_path):
    """A server is far ahead of a slow learner; it has kept what the slow one needs."""
    one = cell(tmp_path, "parameter-server", 4, {0: [3, 4], 1: [3, 4], 2: [2, 3, 4, 5, 6, 7]})
    one.epochs.told.extend([{}] * 4)
    one._forget_old()
    kept = {int(p.stem.rpartition("-")[2]) for p in tmp_path.glob("cells/one.learner-2.*")}
    assert kept == {3, 4, 5, 6, 7}


def test_nothing_is_removed_before_the_server_has_written_what_comes_after_it(tmp_path):
    """All are beyond epoch 4, and it still writes what it had after the third."""
    one = cell(tmp_path, "parameter-server", 4, {0: [2, 3, 4], 1: [2, 3], 2: [1, 2]})
    one.epochs.told.extend([{}] * 4)
    one._forget_old()
    assert one._from_disk()[1] == 2
    one = cell(tmp_path, "parameter-server", 4, {0: [2, 3, 4], 1: [2, 3], 2: [2, 3]})
    one.epochs.told.extend([{}] * 4)
    one._forget_old()
    kept = {int(p.stem.rpartition("-")[2]) for p in tmp_path.glob("cells/*.checkpoint")}
    assert kept == {3, 4}


@pytest.mark.parametrize("method", ["allreduce", "ring"])
def test_what_a_killed_learner_was_writing_is_no_checkpoint_and_goes(tmp_path, method):
    one = cell(tmp_path, method, 2, {0: [1], 1: [1]})
    other = tmp_path / "cells" / ".another.learner-0.epoch-2.checkpoint.7.part"
    for path in (other, other.with_name(".one.learner-0.epoch-2.checkpoint.7.part")):
        path.write_text("")
    assert one._from_disk()[1] == 1
    assert list(tmp_path.glob("cells/.*")) == [other]


@pytest.mark.parametrize("prepares", [False, True])
@pytest.mark.parametrize(
    ("deaths", "again", "there"),
    [
        *((2, True, set()), (9, True, set()), (1, False, set())),
        # It has trained another model before, and died idle.
        *((2, False, {0, 1}), (9, False, {0, 1}), (1, False, {0, 2})),
    ],
)
def test_who_dies_where_it_has_begun_before_is_replaced(
    tmp_path, monkeypatch, deaths, again, there, prepares
):
    """As it finds its place, or while it prepares."""
    replaced = again or 1 in there
    left, buried = iter(range(deaths)), []

    def gotten(asked, seconds):
        if asked == (1, prepares) and next(left, None) is not None:
            raise ray.exceptions.RayActorError()

    monkeypatch.setattr(cells, "gotten", gotten)
    one = cell(tmp_path, "allreduce", 1, {})
    one.crew = SimpleNamespace(
        prepare=lambda training, agreed, numbers: {number: (number, True) for number in numbers},
        actor=lambda n: SimpleNamespace(here=SimpleNamespace(remote=lambda: (n, False))),
        bury=buried.append,
        there=there,
    )
    if deaths == 2:
        one._prepare([0, 1, 2], again)
        assert one._members == [0, 1, 2] and buried == [1, 1] and one.happened["deaths"] == 2
        return
    told = "learner 1 died, the 4th time in one epoch" if replaced else "learner 1 cannot start"
    with pytest.raises(RunError, match=told):
        one._prepare([0, 1, 2], again)
    assert len(buried) == (4 if replaced else 1)


@pytest.mark.parametrize("method", ["allreduce", "ad-psgd"])
def test_learners_that_lose_each_other_again_and_again_are_told_why(tmp_path, monkeypatch, method):
    """Nobody has died, nor is anybody to join them."""
    one = cell(tmp_path, method, 0, {})
    buried, runs = [], []
    one.crew = SimpleNamespace(
        prepare=lambda training, agreed, numbers: {},
        bury=buried.append,
        there=(),
        actor=lambda number: SimpleNamespace(state=SimpleNamespace(remote=lambda: None)),
    )

    def run(first, epoch):
        runs.append(first)
        return cells.Outcome(ended=[Ended(1, "NCCL error: no space", 0), Ended(0, "stopped", 0)])

    monkeypatch.setattr(one, "_run", run)
    told = r"one: the learners have lost each other, the 4th time in one epoch \(NCCL error: no"
    with pytest.raises(RunError, match=told):
        one.train()
    assert len(runs) == 4 and one.happened["deaths"] == 0


def test_epochs_that_a_diverged_training_never_comes_to_are_none_that_are_left(
    tmp_path, monkeypatch
):
    skipped = []
    shown = SimpleNamespace(skip=lambda: skipped.append(1))
    one = cell(tmp_path, "ad-psgd", 0, {})

    def train(self):
        self._shown = 3
        raise DivergedError("learner 1: training diverged")

    monkeypatch.setattr(_Cell, "train", train)
    with pytest.raises(DivergedError):
        cells.train(None, TASK, one.training, shown)
    assert len(skipped) == one.training.settings.training.epochs - 3


def test_an_epoch_that_is_learned_again_and_again_is_no_way_on(tmp_path):
    """A learner that dies as it writes the checkpoint of an epoch that was told of."""
    one = cell(tmp_path, "allreduce", 0, {})
    one.shown, one._members = SimpleNamespace(advance=lambda said: None), [0, 1]
    deaths = 0
    with pytest.raises(RunError, match=r"learner 0 died, the 4th time in one epoch \(no memory\)"):
        while True:
            for number in (0, 1):
                one._told(Report(number, 0, Measured(), None))
            one._died({0: "no memory"})
            deaths += 1
            assert one._from_disk() == (0, None)
    assert deaths == cells.MOST_DEATHS
    # An epoch further it begins to count anew.
    one._recent = 1
    for epoch, counted in ((0, 1), (1, 0)):
        for number in (0, 1):
            one._told(Report(number, epoch, Measured(), None))
        assert one._recent == counted


def test_why_a_group_broke_is_asked_where_nobody_died_or_is_to_join():
    ended = [Ended(0, None, 3), Ended(1, "gone", 3)]
    assert cells.Outcome(ended=ended).lost == "gone"
    assert cells.Outcome(ended=ended, called=True).lost is None
    assert cells.Outcome(dead={2: "killed"}, ended=ended).lost is None
    assert cells.Outcome(ended=ended[:1]).lost is None


def test_who_was_to_join_is_gone_when_a_training_ends(tmp_path, monkeypatch):
    """What it begins with would be in the next one's way."""
    buried = []
    crew = SimpleNamespace(bury=buried.append)

    def train(self):
        self._joining = {2: 2, 3: 3}
        raise RunError("over")

    monkeypatch.setattr(_Cell, "train", train)
    one = cell(tmp_path, "ad-psgd", 0, {})
    with pytest.raises(RunError, match="over"):
        cells.train(crew, TASK, one.training, None)
    assert buried == [2, 3]


def test_a_server_becomes_no_learner(tmp_path, monkeypatch):
    """It has no processor and no GPU of its own."""
    started, killed = [], []

    class Remote:
        def __init__(self, kind):
            assert kind is Learner

        def options(self, **options):
            self.share = options["num_cpus"], options["num_gpus"]
            return self

        def remote(self, number, settings):
            started.append((number, *self.share))
            return SimpleNamespace(number=number, prepare=SimpleNamespace(remote=lambda *_: number))

    monkeypatch.setattr(crews.ray, "remote", Remote)
    monkeypatch.setattr(crews.ray, "kill", lambda actor: killed.append(actor.number))
    crew = crews.Crew.__new__(crews.Crew)
    crew._actors, crew._servers, crew._nodes, crew._node_size = {}, set(), [], 1
    crew._settings = DataParallelConfig.model_validate({"engine": {"gpus_per_worker": 0.5}})
    served = cell(tmp_path, "parameter-server", 0, {}).training
    assert crew.prepare(served, "same", [0, 1, 2]) == {0: 0, 1: 1, 2: 2}
    assert started == [(0, 1, 0.5), (1, 1, 0.5), (2, 0, 0)] and killed == []
    crew.prepare(cell(tmp_path, "ring", 0, {}, learners=4).training, "same", [0, 1, 2, 3])
    assert started[3:] == [(2, 1, 0.5), (3, 1, 0.5)] and killed == [2]
    crew.prepare(served, "same", [0, 1, 2])
    assert started[5:] == [(2, 0, 0)] and killed == [2, 2]


class Crew:
    """Learners that are there, or gone, when they are asked; `prepared` are those who begin."""

    def __init__(self, gone: tuple[int, ...], unfit: dict[int, RunError]) -> None:
        self.gone, self.unfit, self.prepared, self.buried = gone, unfit, [], []
        self.adopted = {}

    def actor(self, number):
        def adopt(state):
            self.adopted[number] = state
            return number

        state = SimpleNamespace(remote=lambda: f"what learner {number} has")
        return SimpleNamespace(state=state, adopt=SimpleNamespace(remote=adopt))

    def prepare(self, training, agreed, numbers):
        self.prepared += numbers
        return {number: number for number in numbers}

    def bury(self, number):
        self.buried.append(number)

    def gotten(self, number):
        if number in self.gone:
            raise ray.exceptions.ActorDiedError()
        if number in self.unfit:
            raise self.unfit[number]


def joined(tmp_path, monkeypatch, gone=(), unfit=(), ready=(2, 3), method="ad-psgd") -> _Cell:
    """Learners 2 and 3 of four have died and others are to take their places."""
    one = cell(tmp_path, method, 1, {}, learners=4)
    one.crew = Crew(gone, unfit)
    one._members, one._joining = [0, 1], {2: 2, 3: 3}
    monkeypatch.setattr(cells, "gotten", one.crew.gotten)
    monkeypatch.setattr(cells, "_is_ready", lambda number: number in ready)
    one._mend(cells.Outcome(dead={}))
    return one


def test_who_is_ready_joins_whoever_else_is_not(tmp_path, monkeypatch):
    one = joined(tmp_path, monkeypatch, ready=(3,))
    assert one._members == [0, 1, 3] and one._joining == {2: 2}
    assert one.crew.prepared == [] and one.happened["rejoins"] == 1
    assert one.crew.adopted == {3: "what learner 0 has"}


def test_who_dies_while_it_joins_is_counted_and_replaced(tmp_path, monkeypatch):
    one = joined(tmp_path, monkeypatch, gone=(2,))
    assert one._members == [0, 1, 3]
    assert one.happened["deaths"] == 1 and one.crew.buried == one.crew.prepared == [2]
    assert one._joining == {2: 2} and list(one.crew.adopted) == [3]
    one._recent = cells.MOST_DEATHS
    with pytest.raises(RunError, match="learner 2 died, the 4th time in one epoch"):
        one._mend(cells.Outcome(dead={}))


def test_nobody_takes_the_place_of_who_cannot_begin_there_and_the_others_go_on(
    tmp_path, monkeypatch, caplog
):
    """Ray has found a machine for it on which there is other speech."""
    unfit = {2: RunError("learner 2 on there has another corpus")}
    one = joined(tmp_path, monkeypatch, unfit=unfit)
    assert one._members == [0, 1, 3] and one.crew.buried == [2] and one.crew.prepared == []
    assert one.happened["deaths"] == 0 and not one._joining
    assert "nobody takes the place of learner 2: learner 2 on there has another" in caplog.text
    # All of them are asked for where all have to begin again.
    one._members = []
    monkeypatch.setattr(one, "_prepare", lambda numbers, again: one._members.extend(numbers))
    one._mend(cells.Outcome(dead=dict.fromkeys((0, 1, 3), "killed")))
    assert one._members == [0, 1, 2, 3]


@pytest.mark.parametrize(("method", "called"), [("hierarchical", [3]), ("ad-psgd", [2, 3])])
def test_half_a_node_waits_for_its_other_half_and_disturbs_nobody(
    tmp_path, monkeypatch, method, called
):
    """Another one calls the others back as soon as it is ready."""
    one = joined(tmp_path, monkeypatch, ready=(), method=method)
    assert one._members == [0, 1]
    one.crew, stopped = _Streams({0: iter([]), 1: iter([])}), []
    ready = iter([[2], [3], [one.crew.streams[0]], [one.crew.streams[1]]])
    one.crew.stop = lambda name: stopped.append(now[-1])

    def wait(streams, timeout):
        now.append(next(ready)[0])
        assert now[-1] in streams
        return now[-1:], []

    now = []
    monkeypatch.setattr(generations.ray, "wait", wait)
    assert one._run(0, None).called
    assert stopped == [number for number in called for _ in one._members]


@pytest.mark.parametrize(
    ("dead", "goes_on"),
    [((4,), False), ((0, 1, 2, 3), False), ((0, 2), True), ((0, 4), False)],
)
def test_without_the_server_or_without_learners_all_begin_again(
    tmp_path, monkeypatch, caplog, dead, goes_on
):
    """Four have a parameter server, whose place no learner can take."""
    one = cell(tmp_path, "parameter-server", 2, {n: [1, 2] for n in range(5)}, learners=4)
    one.crew, one._members = Crew((), {}), [0, 1, 2, 3, 4]
    monkeypatch.setattr(cells, "gotten", one.crew.gotten)
    monkeypatch.setattr(cells, "_is_ready", lambda number: False)
    begun = []
    monkeypatch.setattr(one, "_prepare", lambda numbers, again: begun.append((numbers, again)))
    outcome = cells.Outcome(
        dead=dict.fromkeys(dead, "killed"), ended=[Ended(n, "left", 27) for n in (1, 3)]
    )
    where = one._mend(outcome)
    if goes_on:
        assert where == (27, None) and one._members == [1, 3, 4] and not begun
        assert one.crew.prepared == [0, 2] and one.happened["restarts"] == 0
        assert "learners 1, 3 go on together" in caplog.text
    else:
        assert where == (20, 2) and begun == [([0, 1, 2, 3, 4], True)]
        assert one.happened["restarts"] == 1


def test_a_server_that_died_is_called_so(tmp_path, caplog):
    one = cell(tmp_path, "parameter-server", 2, {n: [1, 2] for n in range(3)}, learners=2)
    one._died({1: "killed"})
    one._died({2: "killed"})
    said = [record.getMessage() for record in caplog.records]
    assert said == ["learner 1 died: killed", "the parameter server died: killed"]


class _Streams:
    """Learners whose reports come by these streams."""

    own_gpus, address = False, ("127.0.0.1", 1)

    def __init__(self, streams):
        self.streams, self.buried = streams, []

    def stop(self, name): ...

    def actor(self, number):
        learn = SimpleNamespace(remote=lambda order: self.streams[number])
        return SimpleNamespace(
            learn=SimpleNamespace(options=lambda num_returns: learn),
            stop=SimpleNamespace(remote=lambda name: self.stop(name)),
        )

    def bury(self, number):
        self.buried.append(number)


GIVES_MODELS = SimpleNamespace(
    actor=lambda number: SimpleNamespace(model=SimpleNamespace(remote=lambda: number))
)
"""A crew whose learners' numbers stand for their models."""
GONE = ray.exceptions.ActorDiedError(), ray.exceptions.ObjectLostError("00ff", None, "")
"""What Ray says of a learner that died, and of what was on its machine."""


@pytest.mark.parametrize("error", GONE)
def test_a_report_that_does_not_come_is_a_death(monkeypatch, error):
    def gotten(report):
        raise error

    monkeypatch.setattr(generations, "gotten", gotten)
    buried, stopped = [], []
    stop = SimpleNamespace(stop=SimpleNamespace(remote=stopped.append))
    crew = SimpleNamespace(bury=buried.append, actor=lambda number: stop)
    generation = generations.Generation(crew, "one/1", [0, 1], print, 1.0)
    stream = iter(["a report"])
    generation._streams = {stream: 1, iter([]): 0}
    generation._take(stream)
    assert list(generation._outcome.dead) == buried == [1]
    assert stopped == ["one/1"]


@pytest.mark.parametrize(("method", "expected"), [("allreduce", [1, 6]), ("ring", [2, 4])])
def test_the_model_of_all_is_the_mean_of_theirs_or_that_of_the_first(
    tmp_path, monkeypatch, method, expected
):
    one = cell(tmp_path, method, 1, {})
    one._members = [0, 1]
    models = [{"weight": torch.tensor(each)} for each in ([1.0, 6.0], [3.0, 2.0])]
    monkeypatch.setattr(cells, "gotten", lambda number: models[number])
    one.crew = GIVES_MODELS
    (model,) = one._average().values()
    assert model.tolist() == expected


@pytest.mark.parametrize("error", GONE)
@pytest.mark.parametrize(("method", "asked"), [("allreduce", [0]), ("ring", [0, 1])])
def test_a_learner_that_dies_before_it_has_given_its_model_is_told(
    tmp_path, monkeypatch, method, asked, error
):
    one, answers = cell(tmp_path, method, 1, {}), []

    def gotten(number):
        answers.append(number)
        if number == asked[-1]:
            raise error
        return {"weight": torch.ones(2)}

    monkeypatch.setattr(cells, "gotten", gotten)
    one._members, one.crew = [0, 1], GIVES_MODELS
    told = rf"one: learner {asked[-1]} died when all was learned \(.+\).*--resume$"
    with pytest.raises(RunError, match=told):
        one._average()
    assert answers == asked


def test_a_learner_that_ray_cannot_place_is_told_and_one_that_prepares_is_waited_for(
    tmp_path, monkeypatch
):
    """There is one processor, and another one has it."""
    monkeypatch.setattr(cells, "PLACE_SECONDS", 2.0)
    one = cell(tmp_path, "allreduce", 1, {})
    one.shown = SimpleNamespace(tell=(told := []).append)
    actors = {}
    one.crew = SimpleNamespace(
        prepare=lambda *_: {0: actors[0].prepare.remote(4.0)},
        actor=lambda number: actors[number],
        there=(),
    )
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        learner = ray.remote(num_cpus=1, max_concurrency=crews.AT_ONCE)(_Slow)
        actors[0] = takes_it = learner.remote()
        ray.get(takes_it.here.remote())
        one._prepare([0])
        assert one._members == [0] and told == [
            "one: learners prepare their speech and their model"
        ]
        actors[0] = learner.remote()
        message = r"learner 0 has no place after 2 s; Ray has 0 processors and 0 GPUs to spare"
        with pytest.raises(RunError, match=message):
            one._prepare([0])
    finally:
        ray.shutdown()


def test_a_learner_is_there_before_it_reads_its_speech(tmp_path):
    corpus = {"path": str(tmp_path / "nowhere")}
    settings = DataParallelConfig.model_validate({"corpus": corpus})
    learner = Learner(0, settings)
    learner.here()
    with pytest.raises(FedSpeechError, match="nowhere"):
        learner.prepare(Training(settings, 0, tmp_path, "one"), "agreed")


@pytest.fixture
def table(tmp_path, tone_corpus):
    return {
        "corpus": {"path": str(tone_corpus(tmp_path / "tones", 2, rounds=1, per_round=3))},
        "test": {"speakers": 1},
        "features": {"kind": "log-mel", "dimension": 8},
        "model": {"name": "tdnn-tiny"},
        "units": {"kind": "words"},
        "training": {"augmentation": {"speeds": [1.0]}},
    }


def test_a_learner_with_another_corpus_or_other_settings_is_named(tmp_path, table):
    """Its own fingerprint and the run's are told."""
    settings = DataParallelConfig.model_validate(table)
    learner = Learner(1, settings)
    own = learner._task.fingerprint(settings, 0)
    learner.prepare(Training(settings, 0, tmp_path, "one"), own)
    told = f"another corpus or other settings than the run: fingerprint {own[:12]} there, 0{{12}} "
    with pytest.raises(RunError, match=rf"^learner 1 on {socket.gethostname()} has {told}here$"):
        learner.prepare(Training(settings, 0, tmp_path, "one"), 64 * "0")


def test_each_learner_goes_at_the_pace_that_settings_say(tmp_path, monkeypatch, table):
    paces = []
    monkeypatch.setattr(learners, "Pace", lambda *given: paces.append(given) or Pace(*given))
    for number, slowed in ((0, []), (1, [1.0, 10.0])):
        table["parallel"] = {"learners": 2, "slowed": slowed, "processor": 0.4}
        held = DataParallelConfig.model_validate(table)
        other = Learner(number, held)
        agreed = other._task.fingerprint(held, 0)
        other.prepare(Training(held, 0, tmp_path, "one"), agreed)
    assert paces == [(1.0, 0.4), (10.0, 0.4)]


@pytest.mark.parametrize("shared", [False, True])
def test_what_a_machine_of_a_cluster_lacks_is_told_with_its_name(tmp_path, shared):
    """The run's folder, or what only this one cannot read."""
    corpus, engine = {"path": str(tmp_path / "nowhere")}, {"ray_address": "there:6379"}
    settings = DataParallelConfig.model_validate({"corpus": corpus, "engine": engine})
    if shared:
        (tmp_path / "config.toml").write_text("")
    told = f"{tmp_path}.*nowhere" if shared else f"{tmp_path} is not there; all machines need"
    kind = CorpusError if shared else RunError
    with pytest.raises(kind, match=rf"^learner 2 on {socket.gethostname()}: {told}"):
        Learner(2, settings).prepare(Training(settings, 0, tmp_path, "one"), "agreed")


@pytest.mark.parametrize(
    ("error", "forms", "patience"),
    [
        (RunError("there is no learner 1"), 1.0, generations.ERROR_SECONDS),
        (GONE[0], 1.0, generations.STOP_SECONDS),
        # It may be forming, where nobody tells it of a death.
        (GONE[0], 400.0, 810.0),
    ],
)
def test_how_long_who_hangs_is_waited_for(monkeypatch, error, forms, patience):
    """Not for long where what another one says ends the run."""
    hangs, says = object(), iter(["an error"])
    waited = []

    def wait(streams, timeout):
        waited.append(timeout)
        ready = [stream for stream in streams if stream is says]
        return ready, []

    def gotten(item):
        raise error

    crew = _Streams([says, hangs])
    monkeypatch.setattr(generations.ray, "wait", wait)
    monkeypatch.setattr(generations, "gotten", gotten)
    generation = generations.Generation(crew, "one/1", [0, 1], print, forms)
    told = pytest.raises(RunError, match="there is no learner 1")
    with told if isinstance(error, RunError) else nullcontext():
        generation.run(0, None, {}, print)
    assert crew.buried[-1] == 1
    assert waited[0] is None and set(waited[1:]) == {patience}


def test_what_a_finished_training_went_on_from_is_removed_when_the_run_goes_on(tmp_path):
    """It was killed between the two."""
    one = cell(tmp_path, "ring", 2, {0: [2], 1: [2]})
    settings = one.training.settings
    finished = Cell(settings, 0, "one")
    run = SimpleNamespace(path=tmp_path)
    (tmp_path / "cells" / "one.json").write_text('{"losses": []}')
    train_all(TASK, settings, [finished], [], run, lambda: None)
    assert [path.name for path in (tmp_path / "cells").iterdir()] == ["one.json"]


def test_what_a_learner_warns_of_comes_with_its_epoch_and_is_told_once(tmp_path, caplog):
    learner = Learner.__new__(Learner)
    learner._number, learner._threads, learner._epoch = 2, 1, 0
    learner._training = cell(tmp_path, "parameter-server", 0, {}).training
    learner._watch, learner._warned = Watch(Pace()), []
    learner._writer = checkpoint.Writer()
    learner._save = lambda method: None

    def learn(order):
        for epoch, warns in enumerate(("a lattice", "a lattice", ""), 1):
            if warns:
                logging.getLogger("fedspeech").warning("of %s", warns)
            yield from learner._crossed(epoch, SimpleNamespace(alike=True))

    learner._learn = learn
    reports = list(learner.learn(None))
    assert [report.warned for report in reports] == [("of a lattice",), ("of a lattice",), ()]
    caplog.clear()
    one = cell(tmp_path, "parameter-server", 0, {})  # 2 is the server
    for report in reports:
        one._told(report)
    assert caplog.messages == ["of a lattice"]


def test_how_an_epoch_comes_on_is_shown_and_counts_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "time", SimpleNamespace(monotonic=lambda: 10.0))
    one = cell(tmp_path, "ad-psgd", 0, {})
    one.shown = SimpleNamespace(tell=(told := []).append, advance=told.append)
    one._members = [0, 1]
    for number, (heard, loss) in enumerate([(10, 20.0), (30, 20.0)]):
        measured = Measured(heard, loss, 5, computing=2.0, waiting=0.5, bytes=10**6, staleness=5)
        one._told(Report(number, 0, measured, None, over=False))
    assert not one.epochs.told and "seconds" not in one._record.read_text()
    for number in (0, 1):
        one._told(Report(number, 0, Measured(40, 20.0, 5), None))
    one._told(Report(1, 1, Measured(5, 10.0, 1), None, over=False))
    assert told == [
        "one: epoch 1, so far loss 2.000, 1 utterances/s, 2.0 s computing, 0.5 s waiting, 1.0 MB, "
        "staleness 1, gap 0",
        "one: epoch 1, so far loss 1.000, 4 utterances/s, 4.0 s computing, 1.0 s waiting, 2.0 MB, "
        "staleness 1, gap 0",
        "one: loss 0.500, 8 utterances/s, 0.0 s computing, 0.0 s waiting, 0.0 MB, staleness 0, "
        "gap 0, consensus 0",
        "one: epoch 2, so far loss 2.000, 0 utterances/s, 0.0 s computing, 0.0 s waiting, 0.0 MB, "
        "staleness 0, gap 0",
    ]


def test_memory_that_runs_out_in_a_learner_is_told(tmp_path):
    learner = Learner.__new__(Learner)
    learner._number, learner._threads, learner._warned = 2, 1, []
    learner._training = cell(tmp_path, "ad-psgd", 0, {}).training

    def learn(order):
        yield "an epoch"
        raise torch.OutOfMemoryError("CUDA out of memory")

    learner._learn = learn
    came = learner.learn(None)
    assert next(came) == "an epoch"
    told = r"^one does not fit the memory of learner 2 on .+: a smaller training\.batch_size takes"
    with pytest.raises(RunError, match=told):
        next(came)


def test_what_a_server_sent_and_in_which_epochs_learners_start_is_written_down(tmp_path):
    """The server may be ahead of the learners, and behind them when an epoch is told of."""
    one = cell(tmp_path, "parameter-server", 0, {})
    one.shown, one._members = SimpleNamespace(advance=lambda said: None), [0, 1, 2]
    for number, epoch, sent in ((0, 0, 10), (2, 0, 1000), (1, 0, 10), (0, 1, 10), (1, 1, 10)):
        one._told(Report(number, epoch, Measured(bytes=sent), None))
    one._told(Report(2, 1, Measured(bytes=500), None))
    written = json.loads((tmp_path / "cells" / "one.epochs.json").read_text())["epochs"]
    assert [epoch["bytes"] for epoch in written] == [1020, 520]
    # Another process goes on after them.
    again = _Cell(None, TASK, one.training, one.shown)
    again.epochs, again._members = Epochs(written), [0, 1]
    for number, epoch in ((0, 2), (1, 2), (0, 3), (1, 3)):
        again._told(Report(number, epoch, Measured(), None))
    assert [epoch["starts"] for epoch in again.epochs.told] == [True, False, True, False]


class _Slow:
    """In a learner's place."""

    def here(self) -> None: ...

    def prepare(self, seconds: float) -> None:
        time.sleep(seconds)
