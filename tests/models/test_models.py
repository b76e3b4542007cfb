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
