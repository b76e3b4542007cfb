import pytest
import torch

from fedspeech import models, seeding
from fedspeech.errors import ConfigError
from fedspeech.tensors import sha256, state


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "tdnn-smal",
            "unknown model 'tdnn-smal', expected one of .*tdnn.*; the nearest is tdnn-sm",
        ),
        ("xyz", "model.name: unknown model 'xyz', expected one of [^;]*$"),
    ],
)
def test_an_unknown_name_is_told(name, told):
    with pytest.raises(ConfigError, match=told):
        models.build(name, 40, 5)


def test_a_name_stands_for_sizes_of_which_some_may_be_others():
    small = models.sized(models.find("rnnt-small"))
    sizes = {"encoder_layers": 2, "encoder_units": 20, "bypass": True, "stacking": 2}
    changed = models.find("rnnt-small", sizes)
    assert models.sized(changed) == small | sizes
    model = changed.build(12, 5)
    assert [layer.input_size for layer in model.encoder] == [2 * 12, 3 * 20]
    assert model.subsampling == 6 and model.output.in_features == small["joint"]
    assert models.sized(models.find("tdnn-tiny")) == {"width": 96}
    assert models.build("tdnn-tiny", 12, 5, {"width": 7}).output.in_channels == 7
    assert models.sized(models.find("rnnt-small")) == small


@pytest.mark.parametrize(
    ("name", "sizes", "told"),
    [
        ("tdnn-tiny", {"encoder_units": 9}, "student.encoder_units: a tdnn-tiny has width instead"),
        ("rnnt-tiny", {"width": 9}, "student.width: a rnnt-tiny has encoder_layers, .*, bypass in"),
        ("rnnt-tiny", {"projection": 96}, "student.projection: expected less than encoder_units"),
        ("rnn", {}, "student.name: unknown model 'rnn', expected one of"),
    ],
)
def test_sizes_that_a_model_cannot_have_are_told_with_their_setting(name, sizes, told):
    with pytest.raises(ConfigError, match=f"^{told}"):
        models.find(name, sizes, "student")


@pytest.mark.parametrize("name", ["tdnn-small", "tdnn-tiny", "rnnt-small", "rnnt-tiny"])
def test_a_seed_gives_the_same_model(name):
    def build(seed: int) -> str:
        with seeding.scoped(seed, 0, "", "initialization"):
            return sha256(state(models.build(name, 12, 5)))

    assert build(0) == build(0) != build(1)


def test_parameters_counts_what_is_trained():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    assert models.parameters(module) == 3 * 2 + 2 + 2 + 2


@pytest.mark.parametrize("name", ["tdnn", "tdnn-small", "tdnn-tiny"])
def test_layers_hold_every_trained_value_once_the_input_layer_first(name):
    with torch.device("meta"):
        model = models.build(name, 40, 5)
    found = models.layers(model)
    assert list(found) == [*(f"tdnn.{i}" for i in range(len(model.tdnn))), "output"]
    trained = [name for name, _ in model.named_parameters()]
    assert [n for names in found.values() for n in names] == trained
    assert found["output"] == ("output.weight", "output.bias")
    assert set(found["tdnn.0"]) == {
        f"tdnn.0.{n}" for n in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")
    }
