"""How many messages travel together, against hand-made courses of events."""

from fedspeech.simulation.pace import MOST, Pace


def test_quick_messages_travel_by_the_hundred():
    pace, sizes = Pace(), []
    for _ in range(12):
        sizes.append(pace.size("query.describe"))
        pace.learn("query.describe", sizes[-1], sizes[-1], 0.01)
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512, 512]
    assert MOST == 512


def test_slow_messages_travel_one_at_a_time():
    pace = Pace()
    pace.learn("train.personalize", 1, 1, 40.0)
    assert pace.size("train.personalize") == 1


def test_a_batch_that_was_broken_off_says_how_many_fit():
    pace = Pace()
    for handed in (1, 2, 4):
        pace.learn("train.install", handed, handed, 0.02)
    assert pace.size("train.install") == 8
    pace.learn("train.install", 8, 3, 0.06)
    assert pace.size("train.install") == 3


def test_one_slow_message_at_the_end_of_a_batch_brings_it_back_to_one():
    pace = Pace()
    pace.learn("query", 1, 1, 0.01)
    pace.learn("query", 2, 2, 7.0)
    assert pace.size("query") == 1


def test_a_smaller_batch_than_allowed_says_nothing():
    pace = Pace()
    for handed in (1, 2, 4):
        pace.learn("query", handed, handed, 0.01)
    pace.learn("query", 3, 3, 0.01)  # the rest of a queue
    assert pace.size("query") == 8


def test_types_do_not_know_of_each_other():
    pace = Pace()
    pace.learn("query", 1, 1, 0.01)
    assert (pace.size("query"), pace.size("train")) == (2, 1)
