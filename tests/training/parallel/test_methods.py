"""Every method beside plain sums in NumPy."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import until
from learners import (
    FEATURES,
    WIDTH,
    Job,
    Letters,
    Plain,
    contrastive,
    first_model,
    shared,
    training,
    transducer,
    vector,
)
from torch._C._distributed_c10d import HashStore

from fedspeech.config.data_parallel import ParallelSettings
from fedspeech.errors import DivergedError
from fedspeech.features import batch
from fedspeech.training.criteria import rnnt, triplet
from fedspeech.training.parallel.ad_psgd import ADPSGD, Passive
from fedspeech.training.parallel.bmuf import BMUF
from fedspeech.training.parallel.delay_by_one import DelayByOne
from fedspeech.training.parallel.group import Group, Message
from fedspeech.training.parallel.loop import ParallelLoop
from fedspeech.training.parallel.method import FirstCome, Method
from fedspeech.training.parallel.server import PULL, Server, leaves_time
from fedspeech.training.parallel.watch import Watch

RATE = 0.05
NODES_OF_ONE = {"method": "hierarchical", "node_size": 1}


def job(**settings) -> Job:
    return Job(0, "", 0, ParallelSettings(**settings))


def parts(given: Job) -> list[list[int]]:
    share = shared(given)
    return [share.part(number).chosen for number in range(share.parts)]


@pytest.mark.parametrize("learners", [2, 3])
def test_allreduce_is_one_learner_on_the_joined_batch(together, learners):
    """With batch statistics of the joined batch; 13 utterances leave a batch of uneven parts."""
    settings = {"method": "allreduce", "learners": learners}
    given = job(**settings)
    given.utterances = 13
    plain, chosen = Plain(given), parts(given)
    expected = plain.start
    for first in range(0, len(chosen), learners):
        batch = [i for part in chosen[first : first + learners] for i in part]
        expected = expected - RATE * plain.gradient(expected, batch)
    told = together(settings, utterances=13)
    for each in told:
        assert each.error is None
        np.testing.assert_allclose(each.models[-1], expected, rtol=0, atol=1e-12)
    for name, buffer in plain.model.named_buffers():
        np.testing.assert_allclose(told[0].buffers[name], buffer.numpy(), atol=1e-7)
    assert np.abs(expected - plain.start).max() > 1e-3


def test_all_compute_layers_twice_where_one_has_too_little_memory(together):
    """Their batch statistics are asked for again then, which takes all of them."""
    settings = {"method": "allreduce", "learners": 2}
    once, short = (
        together(settings, recomputes=lambda rank, short=short: rank == 1 and short)
        for short in (False, True)
    )
    for kept, again in zip(once, short, strict=True):
        assert again.error is None
        np.testing.assert_allclose(again.models[-1], kept.models[-1], rtol=0, atol=1e-12)
        assert again.measured.bytes > kept.measured.bytes


def test_allreduce_goes_on_to_the_same_bits(together):
    """Of more than two learners' gradients the sum depends on the order."""
    settings = {"method": "allreduce", "learners": 3}
    whole = together(settings, utterances=18)
    middle = len(whole[0].numbers) // 2
    again = together(
        settings, utterances=18, begins=3 * middle, parameters=whole[0].models[middle - 1]
    )
    np.testing.assert_array_equal(again[0].models[-1], whole[0].models[-1])


def test_allreduce_of_a_transducer_is_one_learner_on_the_joined_batch(together):
    """Utterance 0 has more units than there are steps."""
    once = training(epochs=1, batch_size=1)
    settings = {"method": "allreduce", "learners": 2}
    given = replace(job(**settings), training=once, kind="transducer")
    share, chosen = shared(given), parts(given)
    model = transducer()
    step = torch.optim.SGD(model.parameters(), lr=RATE)
    for first in range(0, len(chosen), 2):
        heard = [share.utterances[i] for part in chosen[first : first + 2] for i in part]
        joined = batch(heard, FEATURES)
        references = [Letters().encode(utterance.text) for utterance in heard]
        step.zero_grad()
        rnnt.loss(model, *model(joined.features, joined.lengths), references).mean().backward()
        step.step()
    told = together(settings, training=once, kind="transducer")
    assert [0] in chosen
    for each in told:
        assert each.error is None
        np.testing.assert_allclose(each.models[-1], vector(model), rtol=0, atol=1e-7)


def test_allreduce_of_phrases_is_one_learner_on_the_joined_batch(together):
    """By the triplet loss; the learners' first gradients differ, since they hear other speech."""
    settings = {"method": "allreduce", "learners": 2}
    given = replace(job(**settings), kind="contrastive")
    share, chosen, model = shared(given), parts(given), contrastive()
    step = torch.optim.SGD(model.parameters(), lr=RATE)
    for first in range(0, len(chosen), 2):
        heard = [share.utterances[i] for part in chosen[first : first + 2] for i in part]
        joined = batch(heard, FEATURES)
        references = [["abc".index(utterance.text[0])] for utterance in heard]
        step.zero_grad()
        triplet.loss(*model(joined.features, joined.lengths), references).mean().backward()
        step.step()
    assert np.abs(vector(model) - vector(contrastive())).max() > 1e-3
    for each in together(settings, kind="contrastive"):
        assert each.error is None
        np.testing.assert_allclose(each.models[-1], vector(model), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "way",
    [
        {"method": "ring"},
        *({"method": "ad-psgd", "partner": who} for who in ("ring", "random", "delay-by-one")),
        {"method": "parameter-server"},
        {"method": "hierarchical", "learners": 4},
        {"method": "bmuf"},
    ],
    ids=lambda way: " ".join(map(str, way.values())),
)
@pytest.mark.parametrize(
    ("kind", "fresh"), [("contrastive", contrastive), ("transducer", transducer)]
)
def test_phrases_and_what_a_transducer_hears_are_learned_by_every_method(
    together, kind, fresh, way
):
    told = together({"learners": 2, **way}, kind=kind)
    assert {each.error for each in told} == {None}
    start, taught = vector(fresh()), [each for each in told if each.measured.updates]
    assert len(taught) == way.get("learners", 2)
    assert all(np.abs(each.models[-1] - start).max() > 1e-4 for each in taught)


def test_half_precision_is_nearly_that(together):
    once = training(epochs=1)
    full, half = (
        together({"method": "allreduce", "learners": 2, "hook": hook}, training=once)
        for hook in ("none", "fp16")
    )
    first, start = full[0].models[0], Plain(job(learners=2)).start
    gap = np.abs(half[0].models[0] - first).max()
    assert 0 < gap < 2e-3 * np.abs(first - start).max()
    assert half[0].measured.bytes < 0.9 * full[0].measured.bytes


def test_low_rank_sends_less_and_leaves_learners_alike(together):
    """The first ten steps go whole."""
    settings, long = {"method": "allreduce", "learners": 2}, training(epochs=8, batch_size=1)
    full = together(settings, training=long)
    low = together(settings | {"hook": "powersgd"}, training=long)
    np.testing.assert_array_equal(low[0].models[-1], low[1].models[-1])
    np.testing.assert_allclose(low[0].models[9], full[0].models[9], rtol=0, atol=1e-12)
    assert np.abs(low[0].models[20] - full[0].models[20]).max() > 1e-6
    assert low[0].measured.bytes < 0.9 * full[0].measured.bytes


def test_ring_averages_with_neighbours_and_steps(together):
    settings = {"method": "ring", "learners": 4}
    given = job(**settings)
    plain, chosen = Plain(given), parts(given)
    models = np.stack([plain.start] * 4)
    squares = np.zeros(4)
    for first in range(0, len(chosen), 4):
        steps = [plain.gradient(x, part) for x, part in zip(models, chosen[first:], strict=False)]
        left, right = np.roll(models, 1, 0), np.roll(models, -1, 0)
        squares += sum(np.square(models - other).sum(1) for other in (left, right))
        models = (left + models + right) / 3 - RATE * np.stack(steps)
    for each, expected, square in zip(together(settings), models, squares, strict=True):
        np.testing.assert_allclose(each.models[-1], expected, rtol=0, atol=1e-12)
        assert each.measured.square == pytest.approx(square) and square > 0
        assert each.measured.met == 2 * len(chosen) // 4


def test_delay_by_one_steps_by_the_gradient_of_the_model_before(together):
    """Around a ring of four, where neighbours are not all."""
    settings = {"method": "ad-psgd", "partner": "delay-by-one", "learners": 4}
    given = job(**settings)
    plain, chosen = Plain(given), parts(given)
    before = models = np.stack([plain.start] * 4)
    for first in range(0, len(chosen), 4):
        steps = [plain.gradient(x, part) for x, part in zip(before, chosen[first:], strict=False)]
        left, right = np.roll(models, 1, 0), np.roll(models, -1, 0)
        mean = models.mean(0) - RATE * np.mean(steps, 0)
        before, models = models, (left + models + right) / 3 - RATE * np.stack(steps)
        np.testing.assert_allclose(models.mean(0), mean)
    told = together(settings)
    for each, expected in zip(told, models, strict=True):
        np.testing.assert_allclose(each.models[-1], expected, rtol=0, atol=1e-12)
        assert each.measured.most_stale == 1


def test_bmuf_filters_the_mean_of_each_block(together):
    settings = {"method": "bmuf", "learners": 2, "block": 2, "block_momentum": 0.6}
    given = job(**settings)
    given.utterances = 18  # three joined batches in an epoch: the last block is shorter
    plain, chosen = Plain(given), parts(given)
    models = np.stack([plain.start] * 2)
    center, change = plain.start, np.zeros_like(plain.start)
    turns, squares = len(chosen) // 2, np.zeros(2)
    for turn in range(turns):
        pair = zip(models, chosen[2 * turn :], strict=False)
        models = models - RATE * np.stack([plain.gradient(x, part) for x, part in pair])
        if turn % 2 or turn == turns - 1:
            squares += np.square(models - models.mean(0)).sum(1)
            change = 0.6 * change + models.mean(0) - center
            center = center + change
            models = np.stack([center] * 2)
    for each, square in zip(together(settings, utterances=18), squares, strict=True):
        np.testing.assert_allclose(each.models[-1], center, rtol=0, atol=1e-12)
        assert each.measured.square == pytest.approx(square) and square > 0
        assert each.measured.met == -(-turns // 2)


def test_bmuf_with_blocks_of_one_step_and_no_momentum_is_averaging(together):
    settings = {"method": "bmuf", "learners": 2, "block": 1, "block_momentum": 0.0}
    given = job(**settings)
    plain, chosen = Plain(given), parts(given)
    model = plain.start
    for first in range(0, len(chosen), 2):
        steps = [plain.gradient(model, part) for part in chosen[first : first + 2]]
        model = model - RATE * np.mean(steps, 0)
    for each in together(settings):
        np.testing.assert_allclose(each.models[-1], model, rtol=0, atol=1e-12)


class _Alone:
    """A group of one learner."""

    rank, size, watch = 0, 1, Watch()

    def check(self) -> None: ...

    def sum(self, values: torch.Tensor) -> None: ...

    def wait_for_all(self, *times: float) -> None: ...


def test_bmuf_that_is_gone_on_with_after_its_end_stays_as_it_was():
    """The last block is shorter; its momentum counts once."""
    given = job(method="bmuf", learners=1, block=3, block_momentum=0.5)
    loop = ParallelLoop(first_model(given), shared(given), Watch(), "one")
    method = BMUF(loop, _Alone(), given.parallel)
    for part in method.parts(0):
        loop.learn(method, part)
    assert method.state()["steps"] % 3
    method.finish()
    ended, state = vector(loop.model), method.state()
    again = BMUF(loop, _Alone(), given.parallel)
    again.resume(state)
    again.finish()
    np.testing.assert_array_equal(vector(loop.model), ended)


def test_delay_by_one_goes_on_to_the_same_bits():
    """From the model that gradients are of and the latest one, a step before it."""

    def begun(given: Job) -> tuple[ParallelLoop, DelayByOne]:
        loop = ParallelLoop(first_model(given), shared(given), Watch(), "one")
        loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.0)
        return loop, DelayByOne(loop, Group(0, 1, HashStore(), loop.watch), given.parallel)

    def ended(loop: ParallelLoop, method: DelayByOne, first: int) -> np.ndarray:
        for number in range(first, loop.share.parts):
            loop.learn(method, number)
        method.close()
        return vector(loop.model)

    given = job(method="ad-psgd", partner="delay-by-one", learners=1)
    loop, method = begun(given)
    middle = loop.share.parts // 2
    for number in range(middle):
        loop.learn(method, number)
    given.parameters, kept = vector(loop.model), method.state()
    whole = ended(loop, method, middle)
    for state, same in ((kept, True), ({}, False)):
        loop, method = begun(given)
        method.resume(state)
        assert np.array_equal(ended(loop, method, middle), whole) == same
        # Without that state the first gradient is of the latest model.
        late = loop.watch.measured.staleness
        assert late == loop.share.parts - middle - (not same)


@pytest.mark.parametrize("partner", ["ring", "random"])
@pytest.mark.parametrize("learners", [2, 4])
def test_ad_psgd_keeps_the_mean_and_brings_models_together(together, learners, partner):
    """With a rate that moves nothing, averaging alone is left."""
    still = training(learning_rate=1e-300, final_learning_rate=1e-300, epochs=24)
    settings = {"method": "ad-psgd", "partner": partner, "learners": learners}
    told = together(settings, apart=1.0, training=still, utterances=24)
    assert [each.error for each in told] == [None] * learners
    given = [Job(0, "", rank, ParallelSettings(**settings), apart=1.0) for rank in range(learners)]
    start = np.stack([Plain(each).start for each in given])
    end = np.stack([each.models[-1] for each in told])
    np.testing.assert_allclose(end.mean(0), start.mean(0), rtol=0, atol=1e-12)
    spread = [np.abs(models - models.mean(0)).max() for models in (start, end)]
    assert spread[1] < 0.1 * spread[0]
    everything = sorted(number for each in told for number in each.numbers)
    assert everything == list(range(len(parts(given[0]) * 12) * 24 // 12))


def test_ad_psgd_steps_from_the_mean_by_the_gradient_of_the_model_before_it(together):
    """The passive learner rests in its first part, while the active one takes all others."""
    settings = {"method": "ad-psgd", "learners": 2}
    active, passive = together(settings, apart=0.1, late=3.0)
    given = [Job(0, "", rank, ParallelSettings(**settings), apart=0.1) for rank in (0, 1)]
    plain, chosen = Plain(given[0]), parts(given[0])
    mine, theirs = (Plain(each).start for each in given)
    first, square = theirs, 0.0
    for number in active.numbers:
        square += np.square(mine - theirs).sum()
        step = RATE * plain.gradient(mine, chosen[number])
        theirs = (mine + theirs) / 2
        mine = theirs - step
    for number in passive.numbers:
        theirs = theirs - RATE * plain.gradient(first, chosen[number])
    np.testing.assert_allclose(active.models[-1], mine, rtol=0, atol=1e-12)
    np.testing.assert_allclose(passive.models[-1], theirs, rtol=0, atol=1e-12)
    met, late = len(active.numbers), len(passive.numbers)
    assert (met, late) == (len(chosen) - 1, 1)
    # One averaging lies between each gradient of the active learner and its step.
    assert (active.measured.staleness, active.measured.most_stale) == (met, 1)
    assert (passive.measured.staleness, passive.measured.most_stale) == (met, met)
    assert active.measured.bytes == passive.measured.bytes == met * first.nbytes
    assert active.measured.square == pytest.approx(square) and square > 0
    assert (active.measured.met, passive.measured.met) == (met, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "ad-psgd", "learners": 2},
        {"method": "ad-psgd", "learners": 4},
        {"method": "ad-psgd", "learners": 4, "partner": "random"},
        {"method": "hierarchical", "learners": 4, "node_size": 2},
        NODES_OF_ONE | {"learners": 3},
    ],
)
def test_no_step_is_lost_whoever_averages_when(together, settings):
    """The mean of the models moves by the mean of all steps, and by nothing else."""
    nodes = settings.get("node_size", 1)
    apart = lambda rank: float(rank // nodes)  # noqa: E731
    told = together(settings, apart=apart, utterances=24)
    assert [each.error for each in told] == [None] * len(told)
    given = ParallelSettings(**settings)
    start = [
        Plain(Job(0, "", r - r % nodes, given, apart=apart(r))).start for r in range(len(told))
    ]
    steps = [RATE * np.sum(each.gradients, 0) for each in told]
    end = np.mean([each.models[-1] for each in told], 0)
    np.testing.assert_allclose(end, np.mean(start, 0) - np.mean(steps, 0), rtol=0, atol=1e-12)
    assert np.abs(np.mean(steps, 0)).max() > 1e-3
    every = range(len(parts(replace(job(**settings), utterances=24))))
    assert sorted(number for each in told for number in each.numbers) == [*every]


def test_what_each_method_sends(together):
    """Models and gradients of so many bytes, to each neighbour, in each step or block."""
    whole = Plain(job(learners=4)).start.nbytes
    steps = len(parts(job(learners=4))) // 4
    for settings in ({"method": "ring"}, {"method": "ad-psgd", "partner": "delay-by-one"}):
        told = together(settings | {"learners": 4})
        assert {each.measured.bytes for each in told} == {steps * 2 * whole}
    told = together({"method": "bmuf", "learners": 4, "block": 2})
    # Three quarters of the model go twice where a ring sums it.
    assert {each.measured.bytes for each in told} == {-(-steps // 2) * 2 * 3 * whole // 4}
    *learners, server = together({"method": "parameter-server", "learners": 3})
    pushes = [len(each.numbers) for each in learners]
    # Two numbers of eight bytes go with each push and four more; with each model one comes back.
    sent = [pushed * whole + (pushed + 4) * 16 for pushed in pushes]
    assert [each.measured.bytes for each in learners] == sent
    assert server.measured.bytes == sum(pushed + 2 for pushed in pushes) * (whole + 8)


def test_what_is_sent_with_batch_statistics(together):
    """In each step a gradient, half of it twice, and for each of two normalizations three rows of
    statistics, of which both learners' gradients come back.
    """
    whole = Plain(job(learners=2)).start.nbytes
    steps, rows = len(parts(job(learners=2))) // 2, 3 * WIDTH * 8
    both = steps * (whole + 2 * (rows + 2 * rows)) + 4  # and at first who has too little memory
    told = together({"method": "allreduce", "learners": 2})
    assert [each.measured.bytes for each in told] == [both + whole, both]  # the first one's model
    told = together({"method": "hierarchical", "learners": 2, "node_size": 2})
    both += steps * 4  # where they meet before the first one says what to learn and what came of it
    said = (steps + 1) * (16 + whole)
    assert [each.measured.bytes for each in told] == [both + whole + said, both]


def test_how_far_learners_have_come_is_told_to_whoever_goes_on():
    """A part that is underway is learned again where parts are dealt out, and else it is not."""
    share = SimpleNamespace(parts=11)
    dealt = Method(
        SimpleNamespace(share=share), SimpleNamespace(rank=1, size=3), ParallelSettings()
    )
    assert [(number, dealt.reached) for number in dealt.parts(2)] == [(3, 2), (6, 5), (9, 8)]
    assert dealt.reached == 11
    store = HashStore()
    one, other = (
        FirstCome(SimpleNamespace(share=share), Group(rank, 2, store), ParallelSettings())
        for rank in range(2)
    )
    mine, theirs = one.parts(4), other.parts(4)
    assert [next(mine), next(theirs), next(mine)] == [4, 5, 6]
    assert one.reached == other.reached == 7
    assert list(theirs) == [7, 8, 9, 10] and list(mine) == []
    assert one.reached == 11


@pytest.mark.parametrize("method", ["allreduce", "ring", "bmuf"])
def test_who_waits_for_a_slow_learner_computes_no_longer(together, method):
    slow = lambda rank: 20.0 if rank == 1 else 1.0  # noqa: E731
    settings = {"method": method, "learners": 2} | ({"block": 2} if method == "bmuf" else {})
    one, other = (each.measured for each in together(settings, slowed=slow, utterances=24))
    assert one.computing < 0.3 * other.computing
    assert one.waiting > 0.5 * other.computing
    assert other.waiting < 0.3 * one.waiting


@pytest.mark.parametrize("settings", [{"method": "ad-psgd"}, NODES_OF_ONE])
def test_a_slow_learner_takes_fewer_parts(together, settings):
    told = together(
        settings | {"learners": 2},
        slowed=lambda rank: 10.0 if rank == 1 else 1.0,
        training=training(epochs=6),
        utterances=24,
    )
    fast, slow = (len(each.numbers) for each in told)
    assert fast > 2 * slow > 0


def test_a_slow_learner_of_a_node_holds_up_no_other_node(together):
    """It is the second one of the node that the other asks; its first one waits for it."""
    told = together(
        {"method": "hierarchical", "learners": 4, "node_size": 2},
        slowed=lambda rank: 30.0 if rank == 3 else 1.0,
        training=training(epochs=8),
        utterances=24,
    )
    assert [each.error for each in told] == [None] * 4
    fast, _, slow, _ = (len(each.numbers) for each in told)
    assert fast > 2 * slow > 0


@pytest.mark.parametrize(("partner", "met"), [("ring", {1, 5}), ("random", {1, 3, 5})])
def test_whom_one_of_six_averages_with(partner, met):
    settings = ParallelSettings(method="ad-psgd", learners=6, partner=partner)
    loop = SimpleNamespace(model=torch.nn.Linear(1, 1), share=SimpleNamespace(seed=0))
    method = ADPSGD(loop, SimpleNamespace(rank=0, size=6), settings)
    found = [method._partner(SimpleNamespace(number=number)) for number in range(300)]
    assert set(found) == met
    assert all(abs(found.count(one) - 300 / len(met)) < 40 for one in met)
    assert (found[:4] in ([1, 5, 1, 5], [5, 1, 5, 1])) is (partner == "ring")


def test_a_parameter_server_takes_the_steps_in_their_order(together):
    """One learner and its server are plain SGD; of three no gradient is staler than allowed."""
    settings = {"method": "parameter-server", "learners": 1}
    given = job(**settings)
    plain = Plain(given)
    model, square = plain.start, 0.0
    for part in parts(given):
        step = RATE * plain.gradient(model, part)
        model, square = model - step, square + np.square(step).sum()
    learner, server = together(settings)
    assert learner.measured.square == pytest.approx(square) and square > 0
    np.testing.assert_allclose(learner.models[-1], model, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(server.models[-1], learner.models[-1])
    assert learner.measured.most_stale == 0

    bounded = {"method": "parameter-server", "learners": 3, "staleness": 2}
    many = training(batch_size=1, epochs=4)
    *learners, server = together(bounded, training=many)
    assert {each.error for each in learners} == {None}
    assert 1 <= max(each.measured.most_stale for each in learners) <= 2
    assert sum(each.measured.updates for each in learners) == 48
    for each in learners:
        np.testing.assert_array_equal(each.models[-1], server.models[-1])


class _Breaks:
    """A group of two in which nothing can be received."""

    size = 2

    def __init__(self) -> None:
        self.watch, self.wrong = Watch(), None

    def check(self) -> None: ...

    def receive(self, *_: object) -> None:
        raise MemoryError("no memory for what comes")


def test_what_goes_wrong_in_a_thread_that_answers_is_told():
    """Else who waits for an answer would wait for ever."""
    server = Server(None, _Breaks(), torch.zeros(3), None)
    with pytest.raises(MemoryError, match="no memory for what comes"):
        next(server.left(0))

    group = Group(0, 2, HashStore())
    group.receive = _Breaks().receive
    Passive(group, torch.zeros(3), [1])
    until(lambda: group.wrong, 20)
    # Also where nothing is left to be learned, and others are waited for.
    for looks in (group.check, lambda: group.wait_for_all("finished")):
        with pytest.raises(MemoryError, match="no memory for what comes"):
            looks()


class _Pushes:
    """A group of a learner that pushes some parts, and its server."""

    size = 2

    def __init__(self, *numbers: int) -> None:
        self._numbers = iter((PULL, *numbers))

    def check(self) -> None: ...

    def receive(self, into: torch.Tensor, of: int, tag: int) -> Message:
        if into.dtype == torch.float64:
            into.copy_(torch.tensor([0.1, next(self._numbers)]))
        return self.send(into, of, tag)

    def send(self, tensor: torch.Tensor, to: int, tag: int) -> Message:
        return Message(SimpleNamespace(wait=lambda patience: None), tensor, to, None)


def served(step: Callable[[], None], *numbers: int) -> Server:
    """One whose steps are these, and to which the parts with these numbers are pushed."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = SimpleNamespace(model=model, optimizer=optimizer, step=step, begins=lambda number: None)
    return Server(loop, _Pushes(*numbers), torch.zeros(3), None)


def test_nothing_is_kept_of_a_model_that_has_become_no_number():
    """Part 0 is news yet when the step of part 1 leads to no number; who asks would save it."""
    steps = iter((None, DivergedError("no number")))

    def step() -> None:
        if error := next(steps):
            raise error

    server = served(step, 0, 1)
    following = server._next

    def late() -> int | Exception:
        until(lambda: server._diverged, 20)
        return following()

    server._next = late
    with pytest.raises(DivergedError, match="no number"):
        next(server.left(0))


def test_an_epoch_is_over_for_a_server_when_its_last_part_was_pushed():
    """Of parts 3 to 5 that of 4 comes last: then all before 6 are learned, and 7 is as well."""
    server = served(lambda: None)
    server._pulled, server._answer = {1: 0}, lambda rank: None
    left = server.left(3)
    for numbers, expected in (((3, 5, 7), 4), ((4,), 6)):
        for number in numbers:
            server._update(1, 0.1, torch.zeros(3), number)
        server._news.put(numbers[-1])
        assert next(left) == expected


@pytest.mark.parametrize("bound", [2, None])
def test_a_slow_learner_is_waited_for_where_staleness_is_bounded(together, bound):
    settings = {"method": "parameter-server", "learners": 3} | (
        {"staleness": bound} if bound else {}
    )
    *learners, _ = together(
        settings,
        slowed=lambda rank: 30.0 if rank == 1 else 1.0,
        training=training(batch_size=1, epochs=4),
    )
    assert {each.error for each in learners} == {None}
    most = max(each.measured.most_stale for each in learners)
    assert most <= bound if bound else most > 2


def test_what_leaves_time():
    """All at version 0, bound 2, three learners: any may be first, the second, but not ahead."""
    assert leaves_time(1, {0: 0, 1: 0}, 2)
    assert not leaves_time(2, {0: 0, 1: 0}, 2)
    assert leaves_time(2, {0: 0, 1: 1}, 2)
    assert leaves_time(9, {}, 0)


def test_hierarchical_is_allreduce_in_one_node_and_keeps_the_mean_between_nodes(together):
    settings = {"method": "hierarchical", "learners": 2, "node_size": 2}
    given = job(**settings)
    plain, chosen = Plain(given), parts(given)
    model = plain.start
    for first in range(0, len(chosen), 2):
        model = model - RATE * plain.gradient(model, [*chosen[first], *chosen[first + 1]])
    for each in together(settings):
        np.testing.assert_allclose(each.models[-1], model, rtol=0, atol=1e-12)

    still = training(learning_rate=1e-300, final_learning_rate=1e-300, epochs=4)
    settings = {"method": "hierarchical", "learners": 4, "node_size": 2}
    apart = lambda rank: float(rank // 2)  # noqa: E731
    told = together(settings, apart=apart, training=still, utterances=24)
    assert [each.error for each in told] == [None] * 4
    for one, other in ((told[0], told[1]), (told[2], told[3])):
        assert one.measured.updates == other.measured.updates
        assert one.measured.staleness == other.measured.staleness
        assert one.measured.most_stale == other.measured.most_stale
    # The active node's gradients are all one averaging behind.
    assert told[1].measured.staleness == told[1].measured.updates > 0
    end = np.stack([each.models[-1] for each in told])
    # Also of the passive node, whose model the last averagings have changed.
    np.testing.assert_array_equal(end[0], end[1])
    np.testing.assert_array_equal(end[2], end[3])
    start = [Plain(Job(0, "", r, given.parallel, apart=apart(r))).start for r in (0, 2)]
    np.testing.assert_allclose((end[0] + end[2]) / 2, np.mean(start, 0), rtol=0, atol=1e-12)
