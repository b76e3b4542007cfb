"""What stands for a weak link where the kernel has none."""

import pytest
from relay import QUEUE, Relay

FRAME = bytes(1250)
"""10,000 bits."""


def test_frames_follow_each_other_at_the_links_rate_and_each_is_late():
    relay = Relay(1e6, 0.15, 0.0, "a")
    for _ in range(3):
        relay.take(FRAME, 100.0)
    relay.take(FRAME, 200.0)
    for when, there in ((100.15, 0), (100.165, 1), (100.175, 1), (200.15, 1), (200.165, 1)):
        assert len(relay.due(when)) == there, when
    relay.take(FRAME, 300.0)
    assert relay.seconds(300.1) == pytest.approx(0.06)


def test_one_in_twenty_is_lost_and_the_same_ones_each_time():
    def kept(name: str) -> list[bool]:
        relay = Relay(1e9, 0.0, 0.05, name)
        found = []
        for number in range(10_000):
            relay.take(FRAME, number)
            found.append(len(relay.due(number + 0.5)) == 1)
        return found

    first = kept("a")
    assert 420 < first.count(False) < 580  # mean 500, deviation 22
    assert kept("a") == first != kept("b")


def test_more_than_the_queue_holds_is_lost():
    relay = Relay(1e6, 0.0, 0.0, "a")
    for _ in range(QUEUE + 10):
        relay.take(FRAME, 0.0)
    assert len(relay.due(1e9)) == QUEUE
