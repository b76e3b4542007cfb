import bisect
import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from pydantic import ValidationError

from fedspeech import evaluation, features, seeding
from fedspeech.accelerator import computes_in_bf16
from fedspeech.config.model import FeatureSettings, UnitSettings
from fedspeech.config.training import Optimization
from fedspeech.models.tdnn import TDNN, Layer, Shape
from fedspeech.tensors import sha256, state
from fedspeech.training.course import Course, learning_rate, piecewise_linear
from fedspeech.training.loop import Loop
from fedspeech.units import learn

MFCC = FeatureSettings()
NAME = (1, 2, "anna", "loop")


def optimization(**changes) -> Optimization:
    given = {"epochs": 2, "batch_size": 7, "learning_rate": 1e-2, "final_learning_rate": 1e-4}
    return Optimization.model_validate({**given, "precision": "fp32", **changes})


def tiny() -> TDNN:
    with seeding.scoped(0, 0, "", "tiny"):
        return TDNN(40, 7, Shape(16, (Layer(1), Layer(3))))


def make(spoken, model=None, name=NAME, **changes) -> Loop:
    units = learn([utterance.text for utterance in spoken], UnitSettings(kind="words"))
    return Loop(model or tiny(), Course(optimization(**changes), MFCC, units, spoken, name))


# Schedules.


def test_the_rate_rises_linearly_and_then_falls():
    settings = optimization(warmup=0.2, decay="exponential")
    assert learning_rate(settings, 0.0) == 0
    assert learning_rate(settings, 0.05) == pytest.approx(0.25e-2)
    assert learning_rate(settings, 0.2) == pytest.approx(1e-2)
    assert learning_rate(settings, 0.6) == pytest.approx(1e-3)  # half of two decades
    assert learning_rate(settings, 1.0) == pytest.approx(1e-4)
    settings = optimization(warmup=0.2, decay="cosine")
    assert learning_rate(settings, 0.1) == pytest.approx(0.5e-2)
    assert learning_rate(settings, 0.2) == pytest.approx(1e-2)
    assert learning_rate(settings, 0.6) == pytest.approx((1e-2 + 1e-4) / 2)
    assert learning_rate(settings, 0.4) == pytest.approx(
        1e-4 + 0.99e-2 * math.cos(math.pi / 8) ** 2
    )
    assert learning_rate(settings, 1.0) == pytest.approx(1e-4)


@pytest.mark.parametrize("decay", ["exponential", "cosine"])
def test_the_decay_is_that_of_pytorchs_schedules(decay):
    steps, settings = 10, optimization(decay=decay)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    schedule = (
        torch.optim.lr_scheduler.ExponentialLR(optimizer, 1e-2 ** (1 / steps))
        if decay == "exponential"
        else torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-4)
    )
    for step in range(steps + 1):
        wanted = optimizer.param_groups[0]["lr"]
        assert learning_rate(settings, step / steps) == pytest.approx(wanted, rel=1e-9)
        optimizer.step()
        schedule.step()


def test_the_rate_is_held_between_warm_up_and_decay():
    settings = optimization(warmup=0.2, hold=0.4, decay="exponential")
    rates = [learning_rate(settings, done) for done in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert rates == pytest.approx([0.5e-2, 1e-2, 1e-2, 1e-2, 1e-3, 1e-4])
    assert learning_rate(optimization(hold=1.0), 1.0) == pytest.approx(1e-2)
    with pytest.raises(ValidationError, match="warmup and hold: expected at most 1 together"):
        optimization(warmup=0.5, hold=0.6)


def test_a_warm_up_that_never_ends_is_allowed():
    settings = optimization(warmup=1.0)
    assert learning_rate(settings, 0.5) == pytest.approx(0.5e-2)
    assert learning_rate(settings, 1.0) == pytest.approx(1e-2)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, unique_by=lambda p: p[0]),
    st.floats(0, 1),
)
def test_piecewise_linear_is_numpys_interp(points, x):
    points = sorted(points)
    wanted = np.interp(x, *zip(*points, strict=True))
    assert piecewise_linear(points, x) == pytest.approx(float(wanted), abs=1e-9)


def test_at_a_step_the_value_on_its_left_counts_last():
    points = [(0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (1.0, 1.0)]
    assert [piecewise_linear(points, x) for x in (0.0, 0.5, 0.5000001, 1.0)] == [0, 0, 1, 1]


class Watched(TDNN):
    """Notes what each update sees."""

    def __init__(self) -> None:
        super().__init__(40, 7, Shape(4, (Layer(1),)))
        self.seen: list[list[int]] = []
        self.dropout: list[float] = []
        self.optimizer: torch.optim.Optimizer | None = None
        self.rates: list[float] = []

    def forward(self, features, lengths):
        self.seen.append(lengths.tolist())
        self.dropout.append(self.tdnn[0].dropout.p)
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        return super().forward(features, lengths)


def watch(spoken, **changes) -> tuple[Loop, Watched]:
    model = Watched()
    loop = make(spoken, model, augmentation={"speeds": []}, **changes)
    model.optimizer = loop.optimizer
    return loop, model


def test_rate_and_dropout_follow_the_share_of_updates_done(spoken):
    dropout = [[0.0, 0.0], [0.5, 0.5], [1.0, 0.0]]
    loop, model = watch(spoken, dropout=dropout, decay="cosine", warmup=0.25)
    for number in range(2):
        loop.epoch(number)
    assert loop.course.updates_per_epoch == 4  # 24 utterances in sevens
    done = np.arange(8) / 8
    assert_allclose(model.dropout, 0.5 - np.abs(done - 0.5), atol=1e-9)
    falling = 1e-4 + 0.99e-2 * (1 + np.cos(np.pi * (done - 0.25) / 0.75)) / 2
    assert_allclose(model.rates, np.where(done < 0.25, 0.04 * done, falling), rtol=1e-9)


# What an epoch does.


def test_every_utterance_comes_once_in_every_epoch(spoken):
    noise = [torch.randn(frames, 40) for frames in range(20, 220)]
    norm = spoken[0].normalization
    some = [features.Utterance(f"u{i}", "s", "ba di", {1.0: x}, norm) for i, x in enumerate(noise)]
    loop, model = watch(some, batch_size=3)
    orders = []
    for number in range(2):
        model.seen.clear()
        loop.epoch(number)
        assert sorted(n for lengths in model.seen for n in lengths) == list(range(20, 220))
        assert sorted(map(len, model.seen)) == [2] + [3] * 66
        # Bucketed by length: among 60 that are drawn together, neighbours are alike.
        assert np.mean([max(lengths) - min(lengths) for lengths in model.seen]) < 15
        orders.append(list(model.seen))
    assert orders[0] != orders[1]
    assert [lengths[0] for lengths in orders[0]] != sorted(lengths[0] for lengths in orders[0])


@pytest.mark.parametrize(
    ("buckets", "ends"),
    [
        (1, [22]),
        (3, [6, 15, 22]),  # two, three and three minibatches
        (6, [3, 6, 12, 15, 18, 22]),
        (50, [3, 6, 9, 12, 15, 18, 21, 22]),
    ],
)
def test_minibatches_are_drawn_out_of_buckets_of_lengths(spoken, buckets, ends):
    """22 utterances, the longest first; with three in a minibatch that are eight minibatches."""
    norm = spoken[0].normalization
    noise = [torch.randn(frames, 40) for frames in range(122, 100, -1)]
    some = [features.Utterance(f"u{i}", "s", "ba", {1.0: x}, norm) for i, x in enumerate(noise)]
    units = learn(["ba"], UnitSettings(kind="words"))
    course = Course(optimization(batch_size=3), MFCC, units, some, NAME, buckets)
    epochs = []
    for number in range(2):
        with course.draws(number).taken_up():
            batches = course.batches()
        assert sorted(itertools.chain(*batches)) == list(range(22))
        assert sorted(map(len, batches)) == [1, *[3] * 7] and course.updates_per_epoch == 8
        places = [[bisect.bisect(ends, 21 - i) for i in batch] for batch in batches]
        assert all(len(set(of_batch)) == 1 for of_batch in places)
        assert set(itertools.chain(*places)) == set(range(len(ends)))
        assert places != sorted(places) or buckets == 1
        epochs.append(batches)
    assert epochs[0] != epochs[1]
    same = [{frozenset(batch) for batch in batches} for batches in epochs]
    assert (same[0] == same[1]) == (buckets > 8)


def plain_loop(model: TDNN, loop: Loop, epochs: int) -> list[float]:
    """The same training as a beginner would write it, with AdamW by its formula."""
    settings, moments, step, losses = loop.settings, {}, 0, []
    updates = 4 * settings.epochs
    for number in range(epochs):
        total = 0.0
        with seeding.scoped(1, 2, "anna", f"loop, epoch {number}"):
            for chosen in loop.course.batches():
                rate = 1e-2 * (1e-4 / 1e-2) ** (step / updates)
                for layer in model.tdnn:
                    layer.dropout.p = 0.1
                some = [loop.course.utterances[i] for i in chosen]
                batch = features.batch(some, MFCC, settings.augmentation)
                logits, lengths = model.train()(batch.features, batch.lengths)
                words = [loop.course.references[i] for i in chosen]
                target_lengths = torch.tensor([len(each) for each in words])
                losses_ = torch.nn.functional.ctc_loss(
                    logits.log_softmax(2).transpose(0, 1),
                    torch.tensor(list(itertools.chain(*words))),
                    lengths,
                    target_lengths,
                    reduction="none",
                )
                model.zero_grad()
                (losses_.sum() / len(chosen)).backward()
                norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
                step += 1
                for name, p in model.named_parameters():
                    gradient = p.grad * min(1.0, settings.gradient_norm / float(norm))
                    first, second = moments.get(name, (0.0, 0.0))
                    first = 0.9 * first + 0.1 * gradient
                    second = 0.999 * second + 0.001 * gradient**2
                    moments[name] = (first, second)
                    unbiased = first / (1 - 0.9**step)
                    scale = (second / (1 - 0.999**step)).sqrt() + 1e-8
                    p.data = p.data * (1 - rate * 0.05) - rate * unbiased / scale
                total += losses_.sum().item()
        losses.append(total / len(loop.course.utterances))
    return losses


@pytest.mark.parametrize("limit", [0.5, 1e9])
def test_an_epoch_is_a_plain_loop(spoken, limit):
    changes = {"dropout": [[0.0, 0.1]], "weight_decay": 0.05, "gradient_norm": limit}
    loop = make(spoken, **changes)
    losses = [loop.epoch(number) for number in range(2)]
    reference = tiny()
    wanted = plain_loop(reference, make(spoken, **changes), 2)
    assert_allclose(losses, wanted, rtol=1e-4)
    found, model = state(loop.model), state(reference)
    begin = state(tiny())
    for name in model:
        moved = (model[name] - begin[name]).norm().item()
        # Rounding grows from update to update; it stays far below what training changed.
        assert (found[name] - model[name]).norm().item() < 1e-2 * moved, name
    for ours, theirs in zip(loop.model.parameters(), reference.parameters(), strict=True):
        apart = (ours.grad - theirs.grad * ours.grad.norm() / theirs.grad.norm()).norm().item()
        assert apart < 0.02 * ours.grad.norm().item()
        # Scaled down where they are too large, and the mean over a minibatch where not.
        if limit == 1e9:
            assert ours.grad.norm().item() == pytest.approx(theirs.grad.norm().item(), rel=0.02)


@pytest.mark.parametrize("limit", [1e-3, 1e9])
def test_gradients_are_scaled_down_to_the_norm(spoken, limit):
    loop = make(spoken, gradient_norm=limit)
    loop.epoch(0)
    norm = torch.cat([p.grad.flatten() for p in loop.model.parameters()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3) if limit == 1e-3 else norm > 0.1


def test_training_learns(spoken):
    calm = {name: [] for name in ("speeds", "warps", "volumes", "noise")}
    calm |= {"time_masks": 0, "frequency_masks": 0}
    loop = make(spoken, epochs=40, augmentation=calm)
    losses = [loop.epoch(number) for number in range(40)]
    assert losses[-1] < 0.1 * losses[0]
    units = learn([utterance.text for utterance in spoken], UnitSettings(kind="words"))
    heard = evaluation.transcribe(loop.model, spoken, MFCC, units)
    assert heard == [utterance.text for utterance in spoken]


# The same again.


def trained(spoken, epochs: int, **changes) -> str:
    loop = make(spoken, dropout=[[0.0, 0.1]], **changes)
    for number in range(epochs):
        loop.epoch(number)
    return sha256(state(loop.model))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_names_give_the_same_bytes(spoken, precision):
    torch.manual_seed(1)
    first = trained(spoken, 2, precision=precision)
    torch.manual_seed(2)
    assert trained(spoken, 2, precision=precision) == first


NOTHING = {"speeds": [], "warps": [], "volumes": [], "noise": []}
NOTHING |= {"time_masks": 0, "frequency_masks": 0}


def test_the_clean_share_of_updates_sees_speech_as_it_is(spoken):
    untouched = trained(spoken, 1, augmentation=NOTHING)
    assert trained(spoken, 1, clean=0.5) == untouched  # the first of two epochs
    assert trained(spoken, 1) != untouched
    assert trained(spoken, 2, clean=0.5) != trained(spoken, 2, augmentation=NOTHING)
    assert trained(spoken, 2, clean=1.0) == trained(spoken, 2, augmentation=NOTHING)


@pytest.mark.parametrize(
    "other",
    [(9, 2, "anna", "loop"), (1, 9, "anna", "loop"), (1, 2, "x", "loop"), (1, 2, "anna", "x")],
)
def test_each_name_changes_the_draws(spoken, other):
    assert trained(spoken, 1, name=other) != trained(spoken, 1)


def test_an_epoch_does_not_depend_on_what_was_drawn_before_it(spoken):
    whole = make(spoken)
    whole.epoch(0)
    half = {"model": whole.model.state_dict(), "optimizer": whole.optimizer.state_dict()}
    half = torch.load(saved(half), weights_only=True)
    whole.epoch(1)
    other = make(spoken)
    other.model.load_state_dict(half["model"])
    other.optimizer.load_state_dict(half["optimizer"])
    other.epoch(1)
    assert sha256(state(other.model)) == sha256(state(whole.model))


def saved(content: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return buffer


def test_the_order_is_drawn_anew_in_each_epoch(spoken):
    loop, model = watch(spoken)
    loop.epoch(0)
    first = list(model.seen)
    model.seen.clear()
    loop.epoch(1)
    assert model.seen != first


def test_bfloat16_is_asked_for_or_found():
    assert computes_in_bf16("bf16") and not computes_in_bf16("fp32")
    about = Path("/proc/cpuinfo")
    flags = about.read_text(encoding="utf-8") if about.exists() else ""
    assert computes_in_bf16("auto") == ("avx512_bf16" in flags)


def test_a_gpu_that_only_emulates_bfloat16_does_not_compute_in_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert not computes_in_bf16("auto")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert computes_in_bf16("auto")
