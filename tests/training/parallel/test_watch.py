"""What learners measure, how slow they are made, and what becomes of their reports."""

import numpy as np
import pytest
import torch

from fedspeech.training.parallel import watch
from fedspeech.training.parallel.epochs import Epochs, so_far
from fedspeech.training.parallel.group import summed_bytes
from fedspeech.training.parallel.learner import Report
from fedspeech.training.parallel.watch import SAMPLES, Measured, Pace, Watch, sampled


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when somebody sleeps or works."""

    class Clock:
        now = worked = 0.0

        def monotonic(self) -> float:
            return self.now

        def process_time(self) -> float:
            return self.worked

        def sleep(self, seconds: float) -> None:
            self.now += seconds

        def work(self, seconds: float, lent: float = 1.0) -> None:
            """A stretch in which the process had this share of a processor."""
            self.now += seconds
            self.worked += seconds * lent

    made = Clock()
    monkeypatch.setattr(watch, "time", made)
    return made


def test_waiting_is_no_computing(clock):
    seen = Watch()
    with seen.computes():
        clock.work(2.0)
        with seen.waits():
            clock.now += 5.0
        clock.work(1.0)
        seen.ready()
        clock.now += 4.0
    measured = seen.take()
    assert (measured.computing, measured.waiting) == (3.0, 9.0)
    assert seen.take() == Measured()


@pytest.mark.parametrize(
    ("factor", "share", "lent", "expected"),
    [
        (1.0, None, 1.0, 2.0),
        (10.0, None, 1.0, 20.0),
        (1.0, 0.5, 1.0, 4.0),  # twice the processor that it may take
        (1.0, 0.5, 0.4, 2.0),  # others took more of it than that already
        (10.0, 0.5, 1.0, 40.0),
    ],
)
def test_a_learner_rests_until_it_has_been_slow_enough(clock, factor, share, lent, expected):
    seen = Watch(Pace(factor, share))
    with seen.computes():
        clock.work(2.0, lent)
    assert seen.take().computing == pytest.approx(expected) == clock.now


@pytest.mark.parametrize(
    ("factor", "share", "expected"),
    [
        (1.0, None, 2.0 + 3.0 + 1.0),
        (10.0, None, 20.0 + 3.0 + 1.0),
        # Two seconds of computing take four at half a processor; all together has seven, 14.
        (10.0, 0.5, 40.0 + 3.0 + 1.0),
        (1.0, 0.5, 14.0),
    ],
)
def test_talking_takes_processors_and_is_not_slowed(clock, factor, share, expected):
    """Of seven processor seconds two compute; the rest is spent in three seconds of waiting for a
    sum and in one after all was ready.
    """
    seen = Watch(Pace(factor, share))
    with seen.computes():
        clock.work(2.0)
        with seen.waits():
            clock.work(3.0, 4 / 3)
        seen.ready()
        clock.work(1.0)
    assert clock.now == pytest.approx(expected)
    assert seen.take().waiting == 4.0


def test_what_is_done_between_gradients_counts_for_the_share_as_well(clock):
    """Averaging, and what threads do while the learner rests."""
    seen = Watch(Pace(1.0, 0.5))
    with seen.computes():
        clock.work(2.0)
    assert clock.now == 4.0
    clock.work(3.0)
    clock.worked += 1.0  # in its sleep
    with seen.waits():
        clock.now += 2.0
    with seen.computes():
        clock.work(2.0)
    # Six processor seconds, of which two compute, in seven: they take twelve.
    assert clock.now == 4.0 + 12.0
    assert seen.take().computing == 4.0 + 2.0 + 5.0


def test_what_a_step_takes_is_rested_after_the_next_gradient(clock):
    seen = Watch(Pace(10.0))
    with seen.steps():
        clock.work(1.0)
    assert clock.now == 1.0
    with seen.computes():
        clock.work(2.0)
    assert seen.take().computing == clock.now == 30.0
    with seen.computes():
        clock.work(2.0)
    assert seen.take().computing == 20.0


def test_how_far_models_are_that_meet():
    watch = Watch()
    watch.met(sampled(torch.tensor([3.0, 0.0])), sampled(torch.tensor([0.0, 4.0])))
    watch.met(torch.zeros(2), torch.zeros(2))
    found = watch.take()
    assert (found.square, found.met) == (25.0, 2)


@pytest.mark.parametrize("size", [5, SAMPLES, SAMPLES + 1, 40 * SAMPLES + 7])
def test_a_sample_is_about_as_far_from_another_one_as_the_models(size):
    draws = torch.Generator().manual_seed(size)
    one, other = (torch.randn(size, generator=draws) for _ in range(2))
    samples = [sampled(model) for model in (one, other)]
    assert min(size, SAMPLES) <= len(samples[0]) < 2 * SAMPLES
    tolerance = 1e-5 if size < 2 * SAMPLES else 0.03
    expected = float(torch.dist(one, other))
    assert float(torch.dist(*samples)) == pytest.approx(expected, rel=tolerance)


def test_bytes_of_a_sum_are_those_of_a_ring():
    """Each of four learners sends three quarters of it twice: 2 x 3/4 x 400 bytes."""
    assert summed_bytes(torch.zeros(100), 4) == 600


def report(learner: int, epoch: int, vector: list[float] | None, **measured) -> Report:
    parameters = None if vector is None else torch.tensor(vector)
    return Report(learner, epoch, Measured(**measured), parameters)


def test_an_epoch_is_told_when_all_who_are_there_are_beyond_it():
    """Learner 2 joined late, and has nothing to say of the first epoch."""
    epochs = Epochs()
    epochs.take(report(0, 0, [1.0, 0.0], utterances=6, loss=12.0, updates=2, bytes=10))
    assert epochs.close([0, 1, 2], 2.0) is None
    epochs.add_bytes(0, 7)  # a parameter server's, which is ahead
    epochs.add_bytes(1, 100)
    epochs.take(
        report(
            *(1, 0, [-1.0, 0.0]),
            **{"utterances": 2, "loss": 12.0, "updates": 2, "staleness": 4, "most_stale": 3},
            **{"square": 50.0, "met": 2},
        )
    )
    assert epochs.close([0, 1, 2], 2.0) is None
    epochs.take(report(2, 1, [0.0, 0.0]))
    told = epochs.close([0, 1, 2], 2.0)
    assert told == {
        "loss": 3.0,
        "seconds": 2.0,
        "utterances": 8,
        "updates": 4,
        "bytes": 17,
        "computing": [0.0, 0.0],
        "waiting": [0.0, 0.0],
        "staleness": 1.0,
        "most_stale": 3,
        "gap": 5.0,
        "consensus": 1.0,
    }
    assert epochs.losses == [3.0] and epochs.close([0, 1, 2], 2.0) is None
    np.testing.assert_equal(len(epochs.told), 1)
    epochs.take(report(0, 1, [0.0, 0.0], bytes=10))
    assert epochs.close([0, 2], 2.0)["bytes"] == 110
    epochs.add_bytes(1, 1000)  # or behind
    assert [each["bytes"] for each in epochs.told] == [17, 1110]


def test_where_models_differ_and_none_have_met_nobody_knows_how_far_they_are():
    """Of bmuf in an epoch in which no block ends; where the method leaves them alike it is none."""
    for parameters, gap, said in (([0.0], None, "none met"), (None, 0.0, "gap 0")):
        epochs = Epochs()
        for learner in range(2):
            epochs.take(report(learner, 0, parameters, utterances=1))
        told = epochs.close([0, 1], 1.0)
        assert told["gap"] == gap and f", {said}" in so_far(told)


def test_who_joins_holds_up_no_epoch_that_the_others_are_beyond():
    """Learner 1 died in its first epoch and goes on where learner 0 is, in the third; learner 2 is
    slow."""
    epochs = Epochs()
    for epoch in range(2):
        epochs.take(report(0, epoch, [0.0]))
    epochs.join(1, 0)
    assert epochs.close([0, 1, 2], 1.0) is None
    epochs.take(report(2, 0, [0.0]))
    assert epochs.close([0, 1, 2], 1.0)["seconds"] == 1.0
    assert epochs.close([0, 1, 2], 1.0) is None
    epochs.take(report(2, 1, [0.0]))
    assert epochs.close([0, 1, 2], 2.0)["seconds"] == 2.0
    # What it learns itself is waited for.
    for learner in (0, 2):
        epochs.take(report(learner, 2, [0.0]))
    assert epochs.close([0, 1, 2], 3.0) is None
    epochs.take(report(1, 2, [0.0]))
    assert epochs.close([0, 1, 2], 3.0) is not None


def test_who_takes_the_place_of_a_dead_learner_takes_nothing_of_what_that_one_told():
    """Learner 1 tells of the first epoch and dies; who comes begins where slow learner 0 is."""
    epochs = Epochs()
    epochs.take(report(1, 0, [0.0], utterances=8, updates=2, loss=4.0, bytes=10))
    epochs.join(1, 0)
    epochs.take(report(1, 0, [0.0], waiting=0.5))
    epochs.take(report(0, 0, [0.0], utterances=2, updates=1, loss=1.0, bytes=1))
    told = epochs.close([0, 1], 1.0)
    assert (told["utterances"], told["bytes"], told["loss"]) == (10, 11, 0.5)


def test_who_takes_the_place_of_one_that_was_ahead_of_all_is_waited_for():
    """Learner 1 tells of the first epoch and dies; who comes learns the rest of it with 0."""
    epochs = Epochs()
    dead = {"utterances": 8, "updates": 2, "loss": 4.0, "staleness": 3, "most_stale": 2}
    epochs.take(report(1, 0, [9.0], **dead, computing=1.0))
    epochs.join(1, 0)
    epochs.take(report(0, 0, [1.0], utterances=2, updates=1, loss=1.0, computing=4.0))
    assert epochs.close([0, 1], 1.0) is None
    more = {"utterances": 6, "updates": 1, "loss": 3.0, "staleness": 1, "most_stale": 5}
    epochs.take(report(1, 0, [3.0], **more, computing=0.5))
    told = epochs.close([0, 1], 1.0)
    assert (told["utterances"], told["updates"], told["loss"]) == (16, 4, 0.5)
    assert told["computing"] == [4.0, 1.5]
    assert (told["staleness"], told["most_stale"]) == (1.0, 5)
    assert told["consensus"] == pytest.approx(1.0)  # of those who are there


def test_who_joins_before_anybody_has_told_of_an_epoch_is_waited_for():
    epochs = Epochs()
    epochs.join(1, 0)
    epochs.take(report(0, 0, [0.0]))
    assert epochs.close([0, 1], 1.0) is None
