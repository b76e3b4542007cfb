"""What is wrong between learners is told, and nothing spreads."""

import multiprocessing
import os
import re
import signal
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from learners import training
from torch._C._distributed_c10d import PrefixStore

from fedspeech.errors import RunError
from fedspeech.training.parallel.group import LOOPBACK, Lost, Seat, _meet, form, join, serve
from fedspeech.training.parallel.watch import Watch

LONG = {"utterances": 48, "training": training(epochs=60)}
"""So that nobody has learned everything before another one has begun."""


def diverged(learner: int) -> str:
    """What that learner says where its training has come to no number, in whatever part."""
    return rf"DivergedError: learner {learner}: training diverged in epoch \d+, part"


def test_who_is_missing_is_named(together):
    """Learner 1 of three never comes."""
    told = together({"method": "ring", "learners": 3}, ranks=[0, 2], seconds=2.0)
    for each in told:
        assert each.error == (
            "RunError: the process group did not form in 2 s: of the learners 0, 1, 2 there is "
            "no 1 (parallel.form_seconds)"
        )


def test_who_dies_while_the_group_forms_is_waited_for_a_while_only(free_tcp_port):
    """Learner 1 said that it is there, and was never heard of again."""
    store, port = serve()
    PrefixStore("a", store).set("here/1", "")
    started = time.monotonic()
    with pytest.raises(RunError, match=r"did not form in 1 s: learner 0 on .* has no connection"):
        form(join(LOOPBACK, port), Seat(0, (0, 1), "a", 1.0), Watch(), threading.Event())
    stopped = threading.Event()
    stopped.set()
    PrefixStore("b", store).set("here/1", "")
    with pytest.raises(Lost, match="stopped"):
        form(join(LOOPBACK, port), Seat(0, (0, 1), "b", 1.0), Watch(), stopped)
    assert time.monotonic() - started < 60
    with pytest.raises(
        RunError, match=f"store at 127.0.0.1:{free_tcp_port} cannot be reached from"
    ):
        join(LOOPBACK, free_tcp_port, 1.0)


def test_who_is_told_to_leave_before_all_have_met_is_waited_for_by_nobody():
    """And who is told so when others have seen everybody goes on to where they are."""
    store, _ = serve()
    seats = [Seat(learner, (0, 1), "a", 60.0) for learner in (0, 1)]
    stopped, never = threading.Event(), threading.Event()
    stopped.set()
    own = PrefixStore("a", store)
    started = time.monotonic()
    with pytest.raises(Lost, match="stopped"):
        _meet(own, seats[0], stopped)
    with pytest.raises(Lost, match="stopped"):  # though it sees both, and was told nothing
        _meet(own, seats[1], never)
    own = PrefixStore("b", store)
    own.set("here/0", "")
    _meet(own, seats[1], never)
    own.delete_key("here/1")
    _meet(own, Seat(0, (0, 1), "b", 60.0), stopped)
    assert time.monotonic() - started < 30


def test_who_could_not_form_a_group_forms_the_next_one():
    """Its partner in that one is another process, which has formed none before."""
    store, port = serve()
    stopped = threading.Event()
    stopped.set()
    PrefixStore("gone", store).set("here/1", "")
    with pytest.raises(Lost, match="stopped"):
        form(join(LOOPBACK, port), Seat(0, (0, 1), "gone", 1.0), Watch(), stopped)
    other = multiprocessing.get_context("spawn").Process(target=stays, args=(port,))
    other.start()
    try:
        seat = Seat(0, (0, 1), "a", 60.0)
        form(join(LOOPBACK, port), seat, Watch(), threading.Event()).close()
    finally:
        other.kill()
        other.join()


def stays(port):
    """A member of a group that does nothing there."""
    with suppress(Lost):
        form(join(LOOPBACK, port), Seat(1, (0, 1), "a"), Watch(), threading.Event())
        time.sleep(300)


def waits(port, way, told):
    """The other one, which is cut off by another thread after two seconds."""
    group = form(join(LOOPBACK, port), Seat(0, (0, 1), "a"), Watch(), threading.Event())
    told.put("formed")
    threading.Timer(2.0, group.cut).start()
    started = time.monotonic()
    try:
        if way == "sum":
            group.sum(torch.ones(4))
        else:
            group.receive(torch.ones(4), 1).arrived()
    except Lost:
        told.put(time.monotonic() - started)
    group.close()


@pytest.mark.parametrize("way", ["sum", "receive"])
def test_who_waits_for_one_that_has_gone_without_a_word_can_be_cut_off(monkeypatch, way):
    """Its process is stopped and closes no connection, as a machine whose power fails."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    store, port = serve()
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    other = context.Process(target=stays, args=(port,), daemon=True)
    one = context.Process(target=waits, args=(port, way, told), daemon=True)
    try:
        other.start()
        one.start()
        assert told.get(timeout=60) == "formed"
        os.kill(other.pid, signal.SIGSTOP)
        assert told.get(timeout=30) >= 1.9
    finally:
        other.kill()
        one.kill()
    del store


@pytest.mark.parametrize("method", ["ring", "allreduce", "bmuf"])
def test_messages_may_come_later_than_a_group_forms(together, method):
    """Forming has two seconds, and the slow learner takes longer for a part."""
    told = together({"method": method, "learners": 2}, seconds=2.0, late=5.0, utterances=6)
    assert [each.error for each in told] == [None, None]


@pytest.mark.parametrize(
    ("settings", "spoiled"),
    [
        ({"method": "allreduce", "learners": 2}, 1),
        ({"method": "ring", "learners": 2}, 1),
        # Who asks sends its model before it computes, and who is asked at any time.
        ({"method": "ad-psgd", "learners": 2}, 0),
        ({"method": "ad-psgd", "learners": 2}, 1),
        ({"method": "ad-psgd", "learners": 2, "partner": "delay-by-one"}, 1),
        ({"method": "hierarchical", "learners": 2, "node_size": 1}, 0),
        ({"method": "hierarchical", "learners": 2, "node_size": 1}, 1),
        ({"method": "bmuf", "learners": 2, "block": 1}, 1),
        ({"method": "parameter-server", "learners": 1}, 0),
    ],
    ids=lambda given: "-".join(map(str, given.values())) if isinstance(given, dict) else None,
)
@pytest.mark.parametrize("where", ["spoiled", "misled"])
def test_no_number_is_stopped_where_it_is(together, settings, spoiled, where):
    """The learner is named, and no other one has it: of the model, and of the gradient."""
    told = together(settings, **{where: spoiled}, **LONG)
    assert re.match(diverged(spoiled), told[spoiled].error)
    for rank, each in enumerate(told):
        if rank != spoiled:
            assert np.isfinite(each.models[-1]).all()
            assert each.error.startswith("Lost: ")


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "allreduce", "learners": 2},
        {"method": "ring", "learners": 2},
        {"method": "ad-psgd", "learners": 2},
        {"method": "ad-psgd", "learners": 2, "partner": "delay-by-one"},
        {"method": "hierarchical", "learners": 2, "node_size": 1},
        {"method": "bmuf", "learners": 2, "block": 1},
        {"method": "parameter-server", "learners": 1},
        {"method": "parameter-server", "learners": 3},
    ],
    ids=lambda settings: f"{settings['method']}-{settings.get('partner', settings['learners'])}",
)
def test_a_step_to_no_number_is_the_last_one(together, settings):
    """Its gradient was sound; what it made of the model reaches nobody."""
    last = settings["learners"] - (settings["method"] != "parameter-server")
    *others, told = together(settings, leaps=last, **LONG)
    assert re.match(diverged(last), told.error)
    for other in others:
        assert np.isfinite(other.models[-1]).all()
        assert other.error.startswith("Lost: ")


def test_a_loss_that_is_no_number_reaches_nobody(together):
    """Of a transducer, which has no batch statistics to be stopped at."""
    settings = {"method": "allreduce", "learners": 2}
    told = together(settings, kind="transducer", deafened=1, **LONG)
    assert re.match(diverged(1), told[1].error)
    assert np.isfinite(told[0].models[-1]).all()
    assert told[0].error.startswith("Lost: ")


def test_a_gradient_too_large_for_half_precision_reaches_nobody(together):
    """It is a number before it is packed, and none for all learners after that."""
    settings = {"method": "allreduce", "learners": 2, "hook": "fp16"}
    told = together(settings, misled=1, factor=1e9, **LONG)
    assert re.match(diverged(1), told[1].error)
    assert np.isfinite(told[0].models[-1]).all()
    assert told[0].error.startswith("Lost: ")


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "allreduce", "learners": 2},
        {"method": "hierarchical", "learners": 2, "node_size": 2},
    ],
    ids=lambda settings: settings["method"],
)
def test_statistics_that_are_no_numbers_are_kept(together, settings):
    """Batch statistics are sums over all learners, before anyone has a loss."""
    told = together(settings, deafened=1, **LONG)
    assert re.match(diverged(1), told[1].error)
    assert np.isfinite(told[0].models[-1]).all()
    assert all(np.isfinite(buffer).all() for buffer in told[0].buffers.values())
    assert told[0].error.startswith("Lost: ")


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "allreduce", "learners": 3},
        {"method": "ring", "learners": 3},
        {"method": "ad-psgd", "learners": 3},
        {"method": "ad-psgd", "learners": 2},
        {"method": "hierarchical", "learners": 4, "node_size": 2},
        {"method": "bmuf", "learners": 3},
        {"method": "parameter-server", "learners": 2},
    ],
    ids=lambda settings: f"{settings['method']}-{settings['learners']}",
)
def test_who_is_left_alone_comes_back(together, settings):
    """The last one (the server, where there is one) is gone in the middle; nobody waits for it."""
    told = together(settings, leaves=2, **LONG)
    for each in told:
        assert each.error.startswith("Lost: ")
        assert np.isfinite(each.models[-1]).all()
