from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from fedspeech import models, seeding
from fedspeech.errors import ConfigError
from fedspeech.models.rnnt import RNNT, Shape

FEATURES, UNITS = 8, 5
SHAPE = Shape(3, 12, 2, 7, embedding=6, joint=10, stacking=3, subsampling=6)


@pytest.fixture
def tiny() -> RNNT:
    with seeding.scoped(0, 0, "", "tiny"):
        return RNNT(FEATURES, UNITS, SHAPE).eval()


def speech(*lengths: int, frames: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise for each utterance, the same whatever else is in the batch, zero after its end."""
    batch = torch.zeros(len(lengths), max(frames, *lengths), FEATURES)
    for row, length in zip(batch, lengths, strict=True):
        draw = torch.Generator().manual_seed(length)
        row[:length] = torch.randn(length, FEATURES, generator=draw)
    return batch, torch.tensor(lengths)


# Sizes.


@pytest.mark.parametrize(
    ("name", "energies", "units", "millions"),
    [
        ("rnnt", 64, 2501, "64.18"),  # the paper: 64.1
        ("rnnt-teacher-41m", 80, 1024, "40.61"),
        ("rnnt-student-22m", 80, 1024, "21.71"),
        ("rnnt-teacher-57m", 80, 1024, "57.40"),
        ("rnnt-student-30m", 80, 1024, "30.11"),
        ("rnnt-teacher-41m", 64, 1024, "40.41"),
        ("rnnt-student-22m", 64, 1024, "21.52"),
    ],
)
def test_the_papers_models_have_the_papers_sizes(name, energies, units, millions):
    with torch.device("meta"):
        count = models.parameters(models.build(name, energies, units))
    assert f"{count / 1e6:.2f}" == millions


def lstm(inputs: int, units: int) -> int:
    """Four gates, each with a matrix for the input, one for the output before, and two biases."""
    return 4 * units * (inputs + units + 2)


def test_the_sizes_are_those_of_the_layers_that_the_paper_names():
    with torch.device("meta"):
        found = models.parameters(models.build("rnnt", 64, 2501))
    encoder = lstm(3 * 64, 1024) + 5 * lstm(1024, 1024)
    prediction = 2501 * 256 + lstm(256, 1024) + lstm(1024, 1024)
    joint = 1024 * 640 + 640 + 1024 * 640 + 640 * 2501 + 2501
    assert found == encoder + prediction + joint == 64_175_557


def test_layers_that_project_what_they_pass_on_are_as_large_as_equations_say():
    """Sak, Senior, Beaufays 2014: four gates that see 640 values of before, and the projection."""
    with torch.device("meta"):
        found = models.build("rnnt", 64, 2501, {"projection": 640})
    layers = [4 * 1024 * (inputs + 640 + 2) + 640 * 1024 for inputs in (3 * 64, *[640] * 5)]
    assert [models.parameters(layer) for layer in found.encoder] == layers
    assert found.encoded.weight.shape == (640, 640)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"projection": 12}, "projection: expected less than encoder_units = 12, found 12"),
        ({"projection": 99}, "projection: expected less than encoder_units = 12, found 99"),
        ({"stacking": 4}, "subsampling: expected a multiple of stacking = 4, found 6"),
        ({"subsampling": 2}, "subsampling: expected a multiple of stacking = 3, found 2"),
        ({"encoder_layers": 1}, "subsampling: expected stacking = 3 with a single encoder layer"),
    ],
)
def test_sizes_that_do_not_go_together_are_told(sizes, told):
    with pytest.raises(ConfigError, match=f"^{told}"):
        replace(SHAPE, **sizes)


@pytest.mark.parametrize("units", [5, 65])
def test_a_fresh_model_says_four_times_in_five_that_nothing_comes_next(units):
    with seeding.scoped(0, 0, "", "fresh"):
        model = RNNT(FEATURES, units, SHAPE)
    encoded, _ = model(*speech(240))
    predicted, _ = model.predict(torch.tensor([[0, 1, 4]]))
    logits = model.join(encoded[:, :, None], predicted[:, None])
    assert logits.softmax(-1)[..., 0].mean().item() == pytest.approx(0.8, abs=0.05)


# What it hears.


def by_hand(model: RNNT, frames: np.ndarray) -> np.ndarray:
    """The encoder in numpy, with the equations of an LSTM (Hochreiter, Schmidhuber 1997)."""
    x = frames.reshape(-1, 3 * FEATURES)
    for number, layer in enumerate(model.encoder):
        if number == 1:
            x = x.reshape(-1, 2 * x.shape[1])
        weights = [p.detach().double().numpy() for p in layer.parameters()]
        y = lstm_by_hand(x, *weights)
        x = x + y if model.shape.bypass and x.shape[1] == y.shape[1] else y
    linear = model.encoded
    return x @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()


def lstm_by_hand(x, w_in, w_back, b_in, b_back, project=None):
    h, c, seen = np.zeros(w_back.shape[1]), np.zeros(len(w_back) // 4), []
    for row in x:
        i, f, g, o = np.split(w_in @ row + b_in + w_back @ h + b_back, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        h = h if project is None else project @ h
        seen.append(h)
    return np.array(seen)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_three_frames_are_a_step_and_two_steps_are_joined_after_the_first_layer(tiny):
    features, lengths = speech(24)
    found, steps = tiny(features, lengths)
    wanted = by_hand(tiny, features[0].double().numpy())
    assert wanted.shape == (4, 10) and steps.tolist() == [4]
    assert_allclose(found[0].detach(), wanted, atol=1e-5)


@pytest.mark.parametrize("projection", [0, 4])
def test_bypasses_and_projections_by_hand(projection):
    """A bypass adds what a layer takes where it gives as many values; a projection is what a layer
    passes on, also to itself."""
    with seeding.scoped(0, 0, "", "bypassed"):
        model = RNNT(FEATURES, UNITS, replace(SHAPE, projection=projection, bypass=True)).eval()
    features, lengths = speech(24)
    wanted = by_hand(model, features[0].double().numpy())
    assert_allclose(model(features, lengths)[0][0].detach(), wanted, atol=1e-5)
    state, parts = None, []
    for start in range(0, 24, 12):
        part, state = model.encode(features[:, start : start + 12], state)
        parts.append(part)
    assert_allclose(torch.cat(parts, 1)[0].detach(), wanted, atol=1e-5)


def test_neither_padding_nor_neighbours_nor_what_comes_later_change_what_is_heard(tiny):
    together, steps = tiny(*speech(61, 20, 2, frames=90))
    assert steps.tolist() == [11, 4, 1]
    for row, count, frames in zip(together, steps, (61, 20, 2), strict=True):
        alone, _ = tiny(*speech(frames))
        assert alone.shape == (1, count, 10)
        assert_allclose(row[:count].detach(), alone[0].detach(), atol=1e-6)
    features, lengths = speech(60)
    before, _ = tiny(features, lengths)
    features[:, 30:] += 1
    after, _ = tiny(features, lengths)
    assert_allclose(before[:, :5].detach(), after[:, :5].detach(), atol=1e-6)
    assert (before[:, 5:] - after[:, 5:]).abs().min(1).values.max() > 1e-4


@pytest.mark.parametrize("chunk", [6, 12, 30])
def test_a_stream_in_chunks_is_heard_as_the_whole(tiny, chunk):
    features, lengths = speech(61, 44)
    whole, _ = tiny(features, lengths)
    state, parts = None, []
    for start in range(0, 61, chunk):
        part, state = tiny.encode(features[:, start : start + chunk], state)
        parts.append(part)
    assert_allclose(torch.cat(parts, 1).detach(), whole.detach(), atol=1e-6)


def test_the_prediction_network_reads_unit_by_unit_as_at_once(tiny):
    units = torch.tensor([[0, 3, 1, 1, 4], [0, 2, 2, 4, 3]])
    at_once, _ = tiny.predict(units)
    state, parts = None, []
    for place in range(5):
        part, state = tiny.predict(units[:, place : place + 1], state)
        parts.append(part)
    assert_allclose(torch.cat(parts, 1).detach(), at_once.detach(), atol=1e-6)
    x = tiny.embedding(units[0]).detach().double().numpy()
    for layer in tiny.prediction:
        x = lstm_by_hand(x, *(p.detach().double().numpy() for p in layer.parameters()))
    wanted = x @ tiny.predicted.weight.detach().double().numpy().T
    assert_allclose(at_once[0].detach(), wanted, atol=1e-5)


def test_the_joint_network_is_a_hyperbolic_tangent_of_the_sum(tiny):
    encoded, predicted = torch.randn(2, 4, 1, 10), torch.randn(2, 1, 3, 10)
    weight, bias = tiny.output.weight.detach().numpy(), tiny.output.bias.detach().numpy()
    wanted = np.tanh((encoded + predicted).numpy()) @ weight.T + bias
    found = tiny.join(encoded, predicted)
    assert found.shape == (2, 4, 3, UNITS)
    assert_allclose(found.detach(), wanted, atol=1e-5)


def test_it_learns_under_bfloat16_with_logits_in_float32(tiny):
    with torch.autocast("cpu", torch.bfloat16):
        encoded, _ = tiny.train()(*speech(40, 30))
        predicted, _ = tiny.predict(torch.tensor([[0, 1], [0, 2]]))
        logits = tiny.join(encoded[:, :1], predicted[:, :1])
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tiny.parameters())


def test_layers_hold_every_trained_value_once_the_input_layer_first(tiny):
    found = models.layers(tiny)
    assert list(found) == [
        *("encoder.0", "encoder.1", "encoder.2", "embedding", "prediction.0", "prediction.1"),
        *("encoded", "predicted", "output"),
    ]
    trained = [name for name, _ in tiny.named_parameters()]
    assert [name for names in found.values() for name in names] == trained
    assert set(trained) == set(tiny.state_dict())  # so mixing and diffs reach all of it


def test_dropout_is_on_the_layers_outputs_in_training_only(tiny):
    features, lengths = speech(24)
    still, _ = tiny(features, lengths)
    tiny.dropout.p = 0.5
    assert torch.equal(tiny(features, lengths)[0], still)
    tiny.train()
    with seeding.scoped(0, 0, "", "one"):
        one, _ = tiny(features, lengths)
    with seeding.scoped(0, 0, "", "two"):
        two, _ = tiny(features, lengths)
    assert not torch.allclose(one, two) and not torch.allclose(one, still)
