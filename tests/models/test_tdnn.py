import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from fedspeech import models, seeding
from fedspeech.models.tdnn import TDNN, Dropout, Layer, MaskedBatchNorm, Shape

FEATURES, UNITS = 40, 7
TDNNS = [name for name in models.MODELS if name.startswith("tdnn")]


@pytest.fixture
def tiny() -> TDNN:
    """Three layers; the running statistics are not those of the beginning."""
    with seeding.scoped(0, 0, "", "tiny"):
        model = TDNN(FEATURES, UNITS, Shape(16, (Layer(1), Layer(3, 1), Layer(3, 2))))
        for layer in model.tdnn:
            layer.norm.running_mean.normal_()
            layer.norm.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(layer.norm.weight)
            torch.nn.init.normal_(layer.norm.bias)
    return model


def speech(*lengths: int, frames: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise for each utterance, the same whatever else is in the batch, zero after its end."""
    batch = torch.zeros(len(lengths), max(frames, *lengths), FEATURES)
    for row, length in zip(batch, lengths, strict=True):
        draw = torch.Generator().manual_seed(length)
        row[:length] = torch.randn(length, FEATURES, generator=draw)
    return batch, torch.tensor(lengths)


def running(model: TDNN) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.named_buffers() if "running" in name}


# The architecture.


def test_the_papers_model_has_13_layers_of_512_and_14_million_values():
    model = models.build("tdnn", FEATURES, 500)
    count = models.parameters(model)
    print(f"tdnn: {count:,} trained values")
    assert 13_500_000 < count < 14_500_000
    # 760 inputs; 8 layers see 5 frames and 4 see 3; each has a bias and two values for its norm.
    layers = 760 * 512 + 8 * 5 * 512**2 + 4 * 3 * 512**2 + 13 * 3 * 512
    assert count == layers + 512 * 500 + 500 == 14_297_076
    assert len(model.tdnn) == 13
    assert all(layer.conv.out_channels == 512 for layer in model.tdnn)


def test_the_input_layer_sees_9_frames_to_each_side_at_every_third_frame(tiny):
    features, _ = speech(20)
    padded = np.pad(features[0].double().numpy(), ((9, 9), (0, 0)))
    spliced = np.stack([padded[t : t + 19].T.ravel() for t in range(0, 20, 3)])
    assert spliced.shape == (7, 760)
    conv = tiny.tdnn[0].conv
    weight = conv.weight.detach().double().numpy().reshape(16, 760)
    wanted = spliced @ weight.T + conv.bias.detach().double().numpy()
    found = conv(features.transpose(1, 2))[0].T.detach().numpy()
    assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("name", TDNNS)
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 98, 99, 100])
def test_the_output_has_a_third_of_the_frames_rounded_up(name, frames):
    with torch.device("meta"):
        model = models.build(name, FEATURES, UNITS).eval()
        features = torch.zeros(2, frames, FEATURES)
    logits, lengths = model(features, torch.tensor([frames, 1]).to("meta"))
    assert logits.shape == (2, -(-frames // 3), UNITS)
    _, lengths = TDNN(FEATURES, UNITS, Shape(4, (Layer(1),)))(*speech(frames, 1))
    assert lengths.tolist() == [-(-frames // 3), 1]


@pytest.mark.parametrize("name", TDNNS)
def test_an_output_sees_at_least_27_frames_to_each_side(name):
    model = models.build(name, FEATURES, UNITS).eval()
    features, lengths = speech(601)
    features.requires_grad_()
    logits, _ = model(features, lengths)
    logits[0, 100].square().sum().backward()
    seen = torch.nonzero(features.grad[0].abs().sum(1))[:, 0] - 300
    assert seen.min() <= -27 and seen.max() >= 27
    assert seen.min() == -seen.max()


def test_hidden_layers_are_bypassed_with_the_weight_of_kaldis(tiny):
    tiny.eval()
    features, lengths = speech(30)
    present = torch.ones(1, 1, 10)
    hidden = tiny.tdnn[0](features.transpose(1, 2), present)
    for layer in tiny.tdnn[1:]:
        hidden = layer(hidden, present) + 0.66 * hidden
    found, _ = tiny(features, lengths)
    assert_allclose(found.detach(), tiny.output(hidden).transpose(1, 2).detach(), atol=1e-5)


def test_logits_are_float32_under_bfloat16(tiny):
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = tiny.train()(*speech(40, 30))
    assert logits.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in running(tiny).values())


# What is padding and what is speech.


def test_neither_padding_nor_neighbours_change_what_is_heard(tiny):
    tiny.eval()
    together, lengths = tiny(*speech(61, 20, 2, frames=90))
    assert lengths.tolist() == [21, 7, 1]
    for row, length, frames in zip(together, lengths, (61, 20, 2), strict=True):
        alone, _ = tiny(*speech(frames))
        assert_allclose(row[:length].detach(), alone[0].detach(), atol=1e-5)


def test_what_lies_in_the_padding_of_hidden_layers_is_zero(tiny):
    features, _ = speech(61, 20)
    present = torch.zeros(2, 1, 21)
    present[0, :, :21], present[1, :, :7] = 1, 1
    hidden = tiny.tdnn[0](features.transpose(1, 2), present)
    assert not hidden[1, :, 7:].any() and hidden[1, :, :7].any()


def test_in_training_padding_changes_neither_output_nor_statistics_nor_gradients(tiny):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    found = []
    for frames in (61, 150):
        tiny.load_state_dict(before)
        tiny.zero_grad()
        logits, lengths = tiny.train()(*speech(61, 20, frames=frames))
        spoken = torch.cat([row[:length] for row, length in zip(logits, lengths, strict=True)])
        spoken.square().sum().backward()
        gradients = [p.grad.clone() for p in tiny.parameters()]
        found.append([spoken.detach(), *gradients, *map(torch.clone, running(tiny).values())])
    for short, long in zip(*found, strict=True):
        assert_allclose(short, long, rtol=1e-3, atol=1e-3 * short.abs().max().item())


def test_first_layers_statistics_are_those_of_all_real_frames(tiny):
    """A neighbour enters through its real frames, each with the same weight, and nothing else."""
    features, lengths = speech(61, 20, frames=99)
    first = tiny.train().tdnn[0]
    mean, variance = first.norm.running_mean.clone(), first.norm.running_var.clone()
    tiny(features, lengths)
    heard = torch.relu(first.conv(features.transpose(1, 2))).detach()
    frames = torch.cat([heard[0, :, :21], heard[1, :, :7]], dim=1).double()
    assert_allclose(first.norm.running_mean, 0.9 * mean + 0.1 * frames.mean(1), atol=1e-5)
    assert_allclose(first.norm.running_var, 0.9 * variance + 0.1 * frames.var(1), atol=1e-5)


# Batch normalization of what is there, beside PyTorch's own on the frames without padding.


def both(channels: int = 5) -> tuple[MaskedBatchNorm, torch.nn.BatchNorm1d]:
    ours, theirs = MaskedBatchNorm(channels), torch.nn.BatchNorm1d(channels)
    with seeding.scoped(0, 0, "", "norm"):
        for ours_, theirs_ in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
            torch.nn.init.normal_(ours_)
            theirs_.data.copy_(ours_.data)
    return ours, theirs


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """(3, 5, 11) with anything in the padding, and what is there."""
    with seeding.scoped(0, 0, "", "padded"):
        x = 3 + 2 * torch.randn(3, 5, 11)
    lengths = torch.tensor([11, 4, 1])
    return x, (torch.arange(11) < lengths[:, None])[:, None].float()


def unpadded(x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """(frames, channels) of what is there."""
    return x.transpose(1, 2)[present[:, 0].bool()]


@pytest.mark.parametrize("training", [True, False])
def test_masked_normalization_is_that_of_the_frames_without_padding(training):
    ours, theirs = (norm.train(training) for norm in both())
    x, present = padded()
    for step in range(3):
        left = (x + step).requires_grad_()
        right = unpadded(x + step, present).detach().requires_grad_()
        found, wanted = ours(left, present), theirs(right)
        assert_allclose(unpadded(found, present).detach(), wanted.detach(), atol=1e-5)
        toward = torch.linspace(-1, 1, wanted.numel()).reshape(wanted.shape)
        (unpadded(found, present) * toward).sum().backward()
        (wanted * toward).sum().backward()
        assert_allclose(unpadded(left.grad, present), right.grad, atol=1e-5)
        assert not (left.grad * (1 - present)).any()
    assert_allclose(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-5)
    assert_allclose(ours.bias.grad, theirs.bias.grad, rtol=1e-4, atol=1e-5)
    assert_allclose(ours.running_mean, theirs.running_mean, rtol=1e-5)
    assert_allclose(ours.running_var, theirs.running_var, rtol=1e-5)


def test_dropout_draws_from_the_processors_generator_whatever_the_device():
    """On a GPU as on `meta`, which draws nothing of its own; and the values are PyTorch's."""
    dropout, x = Dropout(0.3), torch.randn(4, 5, 6)
    with seeding.scoped(0, 0, "", "dropout"):
        wanted = torch.nn.functional.dropout(x, 0.3)
        after = torch.rand(3)
    for device in ("cpu", "meta"):
        with seeding.scoped(0, 0, "", "dropout"):
            found = dropout(x.to(device))
            assert torch.equal(torch.rand(3), after)
        assert device == "meta" or torch.equal(found, wanted)
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.parametrize("variance", [-0.002, 0.0, 5.6e-45, 0.009])
def test_what_fell_silent_is_not_made_loud(tiny, variance):
    """In training, or by a diff: the change from 8 to 0, in float16, misses 0 by a little."""
    model = tiny.eval()
    features, lengths = torch.randn(2, 30, 40), torch.tensor([30, 21])
    logits: list[list[torch.Tensor]] = []
    for least in (0.01, variance, 0.02):
        model.tdnn[1].norm.running_var[3] = least
        stacked = {name: tensor[None] for name, tensor in model.state_dict().items()}
        both = model(features, lengths), models.stack(model)(stacked, features[None], lengths[None])
        logits.append([both[0][0], both[1][0][0]])
    for wanted, found, other in zip(*logits, strict=True):
        assert torch.equal(wanted, found) and not torch.allclose(wanted, other, atol=1e-4)


# Training in little memory.


def trained(model: TDNN, recomputes: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Logits, gradients and running statistics of one step with dropout, and the next draw."""
    model = copy.deepcopy(model).train()
    model.recomputes = recomputes
    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = 0.3
    with seeding.scoped(0, 0, "", "a step"):
        logits, _ = model(*speech(41, 60, 17))
        logits.square().mean().backward()
        after = torch.rand(3)
    gradients = {name: each.grad for name, each in model.named_parameters()}
    return {"logits": logits.detach(), **gradients, **running(model)}, after


@pytest.mark.parametrize("gathered", [None, lambda measured: 1.0 * measured[None]])
def test_a_layer_that_is_computed_twice_gives_the_same_bits(tiny, gathered):
    """Also where its statistics are those of several learners, which have a gradient."""
    for module in tiny.modules():
        if isinstance(module, MaskedBatchNorm):
            module.gathered = gathered
    kept, after = trained(tiny, recomputes=False)
    again, as_well = trained(tiny, recomputes=True)
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert torch.equal(after, as_well)
    assert not torch.equal(
        kept["tdnn.0.norm.running_mean"], running(tiny)["tdnn.0.norm.running_mean"]
    )


def test_in_evaluation_nothing_is_computed_twice(tiny):
    tiny.recomputes = True
    tiny.eval()
    calls = []
    tiny.tdnn[1].register_forward_pre_hook(lambda *_: calls.append(1))
    tiny(*speech(30))[0].sum().backward()
    assert calls == [1]
    tiny.train()(*speech(30, 20))[0].sum().backward()
    assert calls == [1] * 3


def test_what_training_keeps_of_the_layers_is_known_beforehand():
    """By the storages that autograd saves, without those of the weights."""
    with seeding.scoped(0, 0, "", "wide"):
        model = TDNN(FEATURES, UNITS, Shape(256, (Layer(1), Layer(3, 1), Layer(3, 2))))
    own = {each.untyped_storage().data_ptr() for each in model.state_dict().values()}
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model.train()(*speech(300, 300, 300))
    found = sum(size for place, size in kept.items() if place not in own)
    assert out[0].shape[0] == 3
    assert 0.75 < model.kept_bytes(3, 300) / found < 1.33
