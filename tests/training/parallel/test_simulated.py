"""Simulated learners, against closed formulas where there are some, and in their limits."""

import numpy as np
import pytest

from fedspeech.training.parallel.simulated import PROCESSES, Case, Link, Network, predict
from fedspeech.training.parallel.simulated_world import (
    Checkpoint,
    World,
    for_its_frames,
    shares_of_an_epoch,
)

SIZE, BANDWIDTH, LATENCY = 4e6, 1e7, 0.002
NETWORK = Network(Link(BANDWIDTH, LATENCY))
INSTANT = Network(Link(np.inf, 0.0))
TWO = (1.0, 2.0)
"""Two processors that disturb each other in nothing."""
ASYNCHRONOUS = ("ad-psgd ring", "ad-psgd random", "parameter-server")
SYNCHRONOUS = ("allreduce", "ring", "ad-psgd delay-by-one", "bmuf")


def case(method, learners, *, seconds=(0.5,), batches=None, network=NETWORK, **more) -> Case:
    batches = 20 * learners if batches is None else batches
    return Case(method, learners, seconds, batches, SIZE, network, **more)


def allreduce_seconds(n: int) -> float:
    return 2 * (n - 1) / n * SIZE / BANDWIDTH + 2 * (n - 1) * LATENCY


@pytest.mark.parametrize("method", PROCESSES)
def test_one_learner_only_computes(method):
    more = {"node_size": 1} if method == "hierarchical" else {}
    found = predict(case(method, 1, seconds=(0.4,), batches=7, **more))
    assert found.seconds == pytest.approx(7 * 0.4)
    assert found.waiting == pytest.approx((0.0,), abs=1e-9)
    assert found.batches == pytest.approx((7,))


@pytest.mark.parametrize("method", PROCESSES)
@pytest.mark.parametrize("learners", [2, 4, 16])
def test_without_a_network_to_wait_for_n_learners_are_n_times_as_fast(method, learners):
    found = predict(case(method, learners, batches=160, network=INSTANT))
    assert found.seconds == pytest.approx(160 * 0.5 / learners)


@pytest.mark.parametrize("learners", [2, 3, 8, 32])
def test_allreduce_takes_what_the_formula_of_a_ring_says(learners):
    found = predict(case("allreduce", learners))
    assert found.seconds == pytest.approx(20 * (0.5 + allreduce_seconds(learners)))
    assert found.waiting == pytest.approx(learners * [20 * allreduce_seconds(learners)])


def test_allreduce_waits_for_the_slowest_of_each_step():
    """The same draws as in the simulation, the slowest of each step by numpy."""
    seconds, learners = (0.1, 0.5, 0.9), 5
    one = case("allreduce", learners, seconds=seconds)
    drawn = World(one).batches
    slowest = np.array([[next(own) for _ in range(20)] for own in drawn]).max(0)
    expected = slowest.sum() + 20 * allreduce_seconds(learners)
    found = predict(one).seconds
    # Those that are ready earlier have sent their first chunks by then.
    assert 0.99 * expected < found <= expected + 1e-9
    assert len(set(predict(one).computing)) == learners and 0.5 * 20 < slowest.sum() < 0.9 * 20


def test_parts_of_a_joined_batch_have_like_lengths_and_so_like_times():
    """Where frames explain all, nobody waits; what is each one's own is waited for."""
    seconds, frames = (1.0, 5.0, 9.0), (10, 50, 90)
    alike = predict(case("allreduce", 8, seconds=seconds, frames=frames, network=INSTANT))
    assert len(set(alike.computing)) == 1
    assert alike.waiting == pytest.approx(8 * [0.0], abs=1e-9)
    assert alike.seconds == pytest.approx(20 * 5.0, rel=0.3)
    assert predict(case("allreduce", 8, seconds=seconds, network=INSTANT)).seconds > 20 * 8
    more = {"seconds": (1.0, 1.5, 4.5, 5.0), "frames": (10, 10, 50, 50), "network": INSTANT}
    found = predict(case("allreduce", 16, **more))
    # Of 16 one nearly always takes the longer of two: 0.25 s more than the mean of 3.
    slowest = found.seconds / 20 - np.mean(found.computing) / 20
    assert slowest == pytest.approx(0.25, abs=0.06)


def test_what_a_batch_takes_for_its_frames_is_a_straight_line():
    frames, seconds = (10, 20, 40, 90), (1.1, 1.8, 4.3, 8.9)
    expected = np.poly1d(np.polyfit(frames, seconds, 1))(frames)
    line, beside = for_its_frames(seconds, frames)
    np.testing.assert_allclose(line, expected)
    np.testing.assert_allclose(line + beside, seconds)
    for alike in ((), (7, 7, 7, 7)):
        line, beside = for_its_frames(seconds, alike)
        assert line.tolist() == [0] * 4 and beside.tolist() == list(seconds)


def test_allreduce_between_nodes_goes_as_fast_as_the_slowest_link():
    slow = Link(BANDWIDTH / 10, LATENCY)
    found = predict(case("allreduce", 4, network=Network(Link(BANDWIDTH, 0.0), slow, 2)))
    step = 6 * (SIZE / 4 / slow.bandwidth + LATENCY)
    # A ring fills and empties once over its fast links.
    assert found.seconds == pytest.approx(20 * (0.5 + step), rel=0.02)


FAR = 0.03
"""Seconds between nodes, where messages have no size."""
NODES = Network(Link(np.inf, LATENCY), Link(np.inf, FAR), 2)


def test_batch_statistics_go_around_a_ring_through_all_nodes():
    """Four learners in two nodes: what comes last has crossed both ways between them, and one node;
    a sum goes around one and a half times.
    """
    found = predict(case("allreduce", 4, network=NODES, statistics=16))
    step = 16 * (LATENCY + 2 * FAR) + 3 * (LATENCY + FAR)
    assert found.seconds == pytest.approx(20 * (0.5 + step))


def test_a_node_asks_the_first_learner_of_another_one():
    """Its answer comes while gradients are computed, or is waited for; inside the node there are
    batch statistics, three small tensors more and a sum; the other learner gets the model while
    the first one goes on.
    """
    more = {"batches": 4000, "network": NODES, "statistics": 16, "node_size": 2}
    inside = (16 + 3 + 2) * LATENCY
    found = predict(case("hierarchical", 4, seconds=(0.5,), **more))
    assert found.seconds == pytest.approx(1000 * (0.5 + inside), rel=1e-3)
    found = predict(case("hierarchical", 4, seconds=(1e-3,), **more))
    asks, asked = 2 * FAR, 1e-3 + inside
    assert found.seconds == pytest.approx(4000 / 2 / (1 / asks + 1 / asked), rel=1e-3)


def test_what_goes_between_nodes_holds_up_nothing_inside_them():
    """A model takes half the time of a batch to another node, and none inside one."""
    network = Network(INSTANT.within, Link(SIZE / 0.25, 0.0), 2)
    found = predict(case("hierarchical", 4, batches=400, network=network, node_size=2))
    assert found.seconds == pytest.approx(100 * 0.5, rel=0.02)
    network = Network(Link(SIZE / 0.1, 0.0), Link(SIZE / 0.5, 0.0), 2)
    found = predict(case("hierarchical", 4, batches=400, network=network, node_size=2))
    # One node waits until a model has gone and another one has come, and tells its other learner of
    # it; the other node computes, sums and tells.
    asks, asked = 1.0 + 0.1, 0.5 + 0.1 + 0.1
    assert found.seconds == pytest.approx(400 / 2 / (1 / asks + 1 / asked), rel=0.02)


def test_a_parameter_server_is_in_no_node():
    found = predict(case("parameter-server", 2, network=NODES))
    assert found.seconds == pytest.approx(20 * (0.5 + 2 * FAR), rel=0.01)


def test_random_partners_share_the_load():
    """Were all three to ask the same one, its link would carry three models in each step: 12 %
    more than with neighbours by turns.
    """
    fixed, random = (
        predict(case(f"ad-psgd {who}", 6, seconds=(0.4,), batches=600)).seconds
        for who in ("ring", "random")
    )
    assert random == pytest.approx(fixed, rel=0.04)


@pytest.mark.parametrize("method", ["ring", "ad-psgd delay-by-one"])
@pytest.mark.parametrize(("learners", "models"), [(2, 1), (3, 2), (8, 2)])
def test_on_a_ring_models_travel_while_gradients_are_computed(method, learners, models):
    travels = models * SIZE / BANDWIDTH + LATENCY
    found = predict(case(method, learners, seconds=(0.1,)))
    assert found.seconds == pytest.approx(20 * travels, rel=0.01)
    assert predict(case(method, learners, seconds=(2.0,))).seconds == pytest.approx(20 * 2.0)


def test_batch_statistics_are_gathered_in_small():
    found = predict(case("allreduce", 4, statistics=16))
    # Around a ring.
    assert found.seconds == pytest.approx(20 * (0.5 + 16 * 3 * LATENCY + allreduce_seconds(4)))
    # Between pieces of computing a small message takes longer than one of a large sum.
    busy = Network(Link(BANDWIDTH, LATENCY, busy=5 * LATENCY))
    found = predict(case("allreduce", 4, statistics=16, network=busy))
    assert found.seconds == pytest.approx(20 * (0.5 + 16 * 15 * LATENCY + allreduce_seconds(4)))


@pytest.mark.parametrize("method", SYNCHRONOUS)
def test_synchronous_methods_fall_to_the_pace_of_the_slowest(method):
    slowed = (1.0, 10.0, 1.0, 1.0)
    found = predict(case(method, 4, batches=400, network=INSTANT, slowed=slowed))
    assert found.seconds == pytest.approx(100 * 10 * 0.5)


@pytest.mark.parametrize("method", ASYNCHRONOUS)
@pytest.mark.parametrize("learners", [4, 8])
def test_asynchronous_ones_lose_no_more_than_the_straggler(method, learners):
    usual = case(method, learners, batches=4000, network=INSTANT)
    slowed = (10.0, *[1.0] * (learners - 1))
    found = predict(case(method, learners, batches=4000, network=INSTANT, slowed=slowed))
    kept = predict(usual).seconds / found.seconds
    assert kept == pytest.approx((learners - 1 + 0.1) / learners, rel=0.015)
    assert found.batches[0] == pytest.approx(4000 / (10 * (learners - 1) + 1), rel=0.02)


def test_a_parameter_server_saturates_where_its_link_is_full():
    # All begin at once, and so all pull together and then all push: the link is full one way.
    most = BANDWIDTH / (2 * SIZE)
    found = predict(case("parameter-server", 64, batches=640))
    assert 640 / found.seconds == pytest.approx(most, rel=0.03)
    # Two that keep in step have half of it each, for their pulls and for their pushes.
    found = predict(case("parameter-server", 2, batches=40))
    assert found.seconds == pytest.approx(20 * (0.5 + 2 * (2 * SIZE / BANDWIDTH + LATENCY)))


def test_a_parameter_server_takes_its_learners_steps_one_after_the_other():
    more = {"network": INSTANT, "step": 0.1}
    # Two begin together: once the second one waits for the first one's step, and then never.
    found = predict(case("parameter-server", 2, batches=200, **more))
    assert found.seconds == pytest.approx(100 * 0.5 + 0.1)
    assert found.computing == pytest.approx(2 * [100 * 0.4])
    # As many as computing leaves time for, and with 64 of them one step after the other.
    for learners, pace in ((4, 4 / 0.5), (64, 1 / 0.1)):
        found = predict(case("parameter-server", learners, batches=100 * learners, **more))
        assert 100 * learners / found.seconds == pytest.approx(pace, rel=0.02)
    # Who is alone steps as part of a batch, and so does everybody with any other method.
    for method, learners in (("parameter-server", 1), ("ring", 2), ("allreduce", 2)):
        assert predict(case(method, learners, **more)).seconds == pytest.approx(20 * 0.5)


def test_a_parameter_server_steps_on_a_processor_of_its_learners():
    """Of 0.5 s of a batch 0.1 s are the server's, on the one processor that there is."""
    more = {"network": INSTANT, "together": (1.0,), "step": 0.1}
    found = predict(case("parameter-server", 4, **more))
    assert found.seconds == pytest.approx(4 * 20 * 0.5, rel=0.01)


def test_a_straggler_does_not_slow_the_server():
    more = {"network": INSTANT, "step": 0.4, "slowed": (1.0, 10.0)}
    found = predict(case("parameter-server", 2, batches=2000, **more))
    seconds = found.seconds / np.array(found.batches)
    # Each now and then waits for the other's step, the straggler less often than it is passed.
    assert seconds[1] == pytest.approx(10 * 0.1 + 0.4, rel=0.3)
    assert found.computing == pytest.approx((0.1 * found.batches[0], 1.0 * found.batches[1]))


@pytest.mark.parametrize(
    ("ways", "models"), [(("pull",), 1), (("pull", "push"), 1), (("push", "push"), 2)]
)
def test_a_parameter_server_sends_and_receives_at_the_same_time(ways, models):
    world = World(case("parameter-server", 2))
    for way in ways:
        world.clock.start(getattr(world, way)())
    world.clock.run()
    assert world.clock.now == pytest.approx(models * SIZE / BANDWIDTH + LATENCY)


@pytest.mark.parametrize(("together", "latency"), [((), LATENCY), ((1.0, 2.0, 2.0), 0.3)])
def test_a_servers_messages_take_longer_where_learners_share_its_processors(together, latency):
    link = Link(np.inf, LATENCY, beside=0.3)
    more = {"network": Network(link), "together": together}
    found = predict(case("parameter-server", 2, batches=40, **more))
    assert found.seconds == pytest.approx(20 * (0.5 + 2 * latency))
    # Who averages with neighbours is sent their models while it computes.
    assert predict(case("ring", 2, batches=40, **more)).seconds == pytest.approx(20 * 0.5)


def test_bmuf_talks_once_in_a_block():
    found = predict(case("bmuf", 4, block=8, batches=4 * 16))
    assert found.seconds == pytest.approx(16 * 0.5 + 2 * allreduce_seconds(4))
    # Blocks go on from epoch to epoch.
    for batches in (17, 4):
        found = predict(case("bmuf", 4, block=8, batches=4 * batches))
        assert found.seconds == pytest.approx(batches * (0.5 + allreduce_seconds(4) / 8))


@pytest.mark.parametrize("partner", ["ring", "random"])
def test_of_two_learners_of_ad_psgd_one_asks_and_the_other_never_waits(partner):
    found = predict(case(f"ad-psgd {partner}", 2, batches=2000))
    asks = 2 * (SIZE / BANDWIDTH + LATENCY)
    assert asks > 0.5
    assert found.seconds == pytest.approx(2000 / (1 / asks + 1 / 0.5), rel=0.01)
    assert found.waiting[1] == pytest.approx(0, abs=0.6)
    # Where computing takes longer, an exchange costs nothing.
    assert predict(case(f"ad-psgd {partner}", 2, seconds=(2.0,))).seconds == pytest.approx(40.0)


def test_who_is_asked_by_many_answers_one_after_the_other():
    usual = predict(case("ad-psgd ring", 3, seconds=(0.01,), batches=3000))
    # Both ends of a ring of three ask the one between them: its link is the limit.
    assert (usual.batches[0] + usual.batches[2]) / usual.seconds < 1.01 * BANDWIDTH / SIZE


def test_nodes_of_one_are_ad_psgd_and_a_single_node_is_allreduce():
    alone = predict(case("hierarchical", 6, node_size=1, seconds=(0.3, 0.6)))
    assert alone == predict(case("ad-psgd ring", 6, seconds=(0.3, 0.6)))
    together = predict(case("hierarchical", 6, node_size=6))
    model = 5 * SIZE / BANDWIDTH + LATENCY
    small = 3 * 5 * LATENCY
    expected = 20 * (0.5 + allreduce_seconds(6) + small + model)
    assert together.seconds == pytest.approx(expected, rel=0.005)


def test_a_straggler_slows_its_node_and_no_other():
    slowed = (10.0, 1.0, 1.0, 1.0)
    found = predict(case("hierarchical", 4, batches=4000, network=INSTANT, slowed=slowed))
    assert 4000 / found.seconds == pytest.approx((2 + 2 / 10) / 0.5, rel=0.01)


def test_learners_share_processors():
    shared = predict(case("allreduce", 4, network=INSTANT, together=TWO))
    assert shared.seconds == pytest.approx(
        2 * predict(case("allreduce", 4, network=INSTANT)).seconds
    )
    # Who rests lends its processor: two of four at full speed beside two that hardly compute.
    slowed = (1.0, 1.0, 1e6, 1e6)
    found = predict(
        case("ad-psgd ring", 4, batches=2000, network=INSTANT, together=TWO, slowed=slowed)
    )
    assert found.batches[0] == pytest.approx(found.batches[1], rel=0.01)
    assert max(found.computing[:2]) == pytest.approx(0.5 * found.batches[0], rel=0.01)


@pytest.mark.parametrize("method", PROCESSES)
def test_equal_cases_give_equal_predictions_and_all_batches_are_learned(method):
    one = case(method, 4, seconds=(0.2, 0.7, 0.4), batches=40, epochs=3)
    assert predict(one) == predict(one)
    assert sum(predict(one).batches) == pytest.approx(40)
    assert predict(one).seconds >= max(predict(one).computing)


@pytest.mark.parametrize("method", PROCESSES)
def test_what_does_not_divide_evenly_is_told_at_the_same_pace(method):
    even = predict(case(method, 4, batches=8, network=INSTANT))
    odd = predict(case(method, 4, batches=9.5, network=INSTANT, epochs=2))
    if method in SYNCHRONOUS:
        assert odd.seconds == pytest.approx(even.seconds * 9.5 / 8)
    few = predict(case(method, 16, batches=2, network=INSTANT))
    assert few.seconds == pytest.approx(0.5 * 2 / 16) and sum(few.batches) == pytest.approx(2)


@pytest.mark.parametrize(
    ("batches", "shares"),
    [
        (2.0, [1, 1]),
        (1.367, [1, 0.367]),
        (0.4, [0.4]),
        (0.1 * 30, [1, 1, 1]),
        (2.999999999, 3 * [1]),
    ],
)
def test_the_last_step_of_an_epoch_has_what_is_left(batches, shares):
    assert shares_of_an_epoch(batches) == pytest.approx(shares, abs=1e-9)


@pytest.mark.parametrize("epochs", [1, 3])
def test_who_meets_in_each_step_meets_once_for_what_is_left_as_well(epochs):
    """Of 175 batches 128 learners have two steps, the first with a whole batch each."""
    for learners, steps in ((128, 2), (64, 3), (175, 1)):
        found = predict(case("allreduce", learners, batches=175, epochs=epochs))
        expected = 175 * 0.5 / learners + steps * allreduce_seconds(learners)
        assert found.seconds == pytest.approx(expected, rel=1e-3)
    # As with parts that whoever comes first takes, of which there are as many.
    for batches, parts in ((200, 200), (200.02, 202)):
        found = predict(case("parameter-server", 2, batches=batches, seconds=(0.0,)))
        assert found.seconds == pytest.approx(parts / 2 * 2 * (2 * SIZE / BANDWIDTH + LATENCY))


def test_the_optimizer_steps_as_long_after_what_is_left():
    """Three batches for two learners: one each and a half."""
    more = {"batches": 3, "network": INSTANT, "step": 0.1}
    assert predict(case("ring", 2, **more)).seconds == pytest.approx(0.5 + 0.1 + 0.4 / 2)
    served = predict(case("parameter-server", 2, **more))
    assert served.computing == pytest.approx(2 * [0.4 + 0.4 / 2])


@pytest.mark.parametrize("method", [*ASYNCHRONOUS, "hierarchical"])
@pytest.mark.parametrize("learners", [64, 96, 128])
def test_with_first_come_methods_too_and_with_few_batches_for_each_learner(method, learners):
    """525 batches are 4.1 for each of 128 learners, in parts that are whole and less."""
    found = predict(case(method, learners, batches=175, network=INSTANT, epochs=3))
    assert found.seconds == pytest.approx(175 * 0.5 / learners, rel=0.025)
    assert sum(found.batches) == pytest.approx(175)


def test_learners_that_compute_at_a_time_disturb_each_other():
    """Two of them take 1.25 times as long as one alone, four on as many processors twice that."""
    crowded = (1.0, 1.6)
    for method in ("allreduce", "ad-psgd random"):
        two = predict(case(method, 2, network=INSTANT, together=crowded))
        assert two.seconds == pytest.approx(20 * 0.5 * 1.25)
        four = predict(case(method, 4, network=INSTANT, together=crowded))
        assert four.seconds == pytest.approx(20 * 0.5 * 2.5)
    # Who rests disturbs nobody.
    slowed = (1.0, 1e6)
    found = predict(case("ad-psgd ring", 2, network=INSTANT, together=crowded, slowed=slowed))
    assert found.computing[0] / found.batches[0] == pytest.approx(0.5, rel=0.02)


def test_messages_take_processors_from_who_computes():
    """One learner of two computes while the other's message, of 0.4 processor seconds, is sent."""
    link = Link(BANDWIDTH, 0.0, work=0.1 / 1e6)
    slow = {"seconds": (2.0,), "network": Network(link)}
    apart = predict(case("ring", 2, **slow))
    one = predict(case("ring", 2, **slow, together=(1.0, 1.0)))
    assert apart.seconds == pytest.approx(20 * 2.0)
    assert one.seconds == pytest.approx(20 * (2 * 2.0 + 2 * 0.4), rel=0.01)
    # With a processor more for each message nobody is disturbed.
    four = predict(case("ring", 2, **slow, together=(1.0, 2.0, 3.0, 4.0)))
    assert four.seconds == pytest.approx(20 * 2.0)
    # A server's model comes before a batch and the gradient goes after it: no less work.
    served = predict(case("parameter-server", 2, **slow, together=(1.0, 1.0)))
    assert served.seconds == pytest.approx(40 * (2.0 + 2 * 0.4), rel=0.05)


@pytest.mark.parametrize("method", ["allreduce", "ring", "ad-psgd random", "parameter-server"])
def test_a_checkpoint_is_copied_and_then_written_beside_the_next_epoch(method):
    more = {"network": INSTANT, "batches": 40, "epochs": 4}
    copied = predict(case(method, 2, **more, checkpoint=Checkpoint(0.3, 2.0, 3.0)))
    assert copied.seconds == pytest.approx(20 * 0.5 + 0.3, rel=0.01)
    # On one processor also the work of writing takes its time, with both learners' or with one's.
    for one_writes, writers in ((True, 1), (False, 2)):
        shared = {"together": (1.0,), "checkpoint": Checkpoint(0.3, 2.0, 3.0)}
        found = predict(case(method, 2, **more, **shared, one_writes=one_writes))
        assert found.seconds == pytest.approx(40 * 0.5 + writers * 2.3, rel=0.03)


def test_the_next_checkpoint_waits_for_the_one_before():
    written = Checkpoint(0.5, 0.0, 30.0)
    found = predict(case("ring", 1, batches=10, epochs=50, checkpoint=written))
    assert found.seconds == pytest.approx(30.5, rel=0.02)
