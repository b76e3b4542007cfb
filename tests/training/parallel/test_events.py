"""Simulated time, against times by hand."""

import numpy as np
import pytest

from fedspeech.training.parallel.events import Clock, Shared


def told(clock, log, name, *signals):
    for signal in signals:
        yield signal() if callable(signal) else signal
    log.append((name, clock.now))


def test_events_happen_in_their_order_and_equal_ones_as_they_were_planned():
    clock, log = Clock(), []
    for name, seconds in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("a again", 1.0)):
        clock.start(told(clock, log, name, clock.after(seconds)))
    clock.run()
    assert log == [("a", 1.0), ("a again", 1.0), ("b", 2.0), ("c", 3.0)]


def test_jobs_share_evenly_from_when_they_come():
    clock, log = Clock(), []
    link = Shared(clock, lambda jobs: 10.0)
    clock.start(told(clock, log, "a", lambda: link.work(100.0)))
    clock.start(told(clock, log, "b", clock.after(5.0), lambda: link.work(20.0)))
    clock.run()
    # Alone until 5 s, when 50 are left; by halves until b's 20 are done at 9 s; then 30 alone.
    assert log == [("b", pytest.approx(9.0)), ("a", pytest.approx(12.0))]


def test_one_job_gets_no_more_than_one_processor():
    clock, log = Clock(), []
    processors = Shared(clock, lambda jobs: min(jobs, 2.0))
    for name in "abc":
        clock.start(told(clock, log, name, lambda: processors.work(1.0)))
    clock.start(told(clock, log, "alone", clock.after(10.0), lambda: processors.work(1.0)))
    clock.run()
    times = dict(log)
    assert [times[name] for name in "abc"] == pytest.approx([1.5, 1.5, 1.5])
    assert times["alone"] == pytest.approx(11.0)


def test_what_has_no_limit_takes_no_time():
    clock, log = Clock(), []
    link = Shared(clock, lambda jobs: np.inf)
    for name in "ab":
        clock.start(told(clock, log, name, clock.after(1.0), lambda: link.work(7.0)))
    clock.run()
    assert log == [("a", 1.0), ("b", 1.0)]
