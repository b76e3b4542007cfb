import json

import pytest
import torch

from fedspeech import models
from fedspeech.config.model import FeatureSettings, UnitSettings
from fedspeech.errors import ConfigError, ModelError
from fedspeech.models.description import ModelDescription, read
from fedspeech.tensors import sha256, state
from fedspeech.units import learn


@pytest.fixture
def tiny() -> ModelDescription:
    units = learn(["ba di", "نعم"], UnitSettings(kind="words"))
    return ModelDescription("tdnn-tiny", FeatureSettings(kind="log-mel", dimension=12), units)


def test_a_file_keeps_everything(tiny, tmp_path):
    tiny.write(tmp_path / "model.json")
    found = read(tmp_path / "model.json")
    assert (found.name, found.features) == (tiny.name, tiny.features)
    assert found.units.vocabulary == ("<blank>", "ba", "di", "نعم")
    assert found.to_json() == tiny.to_json()
    assert "نعم" in (tmp_path / "model.json").read_text(encoding="utf-8")


def test_a_module_is_made_of_tensors(tiny):
    wanted = state(tiny.empty())
    module = tiny.module(wanted)
    assert sha256(state(module)) == sha256(wanted) != sha256(state(tiny.empty()))
    before = sha256(wanted)
    with torch.no_grad():
        module.output.bias.add_(1)
    assert sha256(wanted) == before  # copied
    assert module(torch.zeros(1, 9, 12), torch.tensor([9]))[0].shape == (1, 3, 4)


def test_tensors_that_do_not_fit_are_told(tiny):
    wanted = state(tiny.empty())
    with pytest.raises(
        ModelError, match=r"tensor output.bias has shape \(5,\), the model has \(4,"
    ):
        tiny.module({**wanted, "output.bias": torch.zeros(5)})
    del wanted["output.bias"]
    with pytest.raises(ModelError, match=r"tensor output.bias is missing"):
        tiny.module(wanted)


def test_layers_are_those_of_the_module(tiny):
    assert tiny.layers() == models.layers(tiny.empty())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": None}, "KeyError.'name'."),
        ({"features": {"dimension": 0}}, "features.dimension: Input should be greater"),
        ({"features": {"kin": "mfcc"}}, "features.kin: Extra inputs"),
        ({"units": {"kind": "words"}}, "KeyError.'units'."),
        ({"units": {"kind": "runes", "units": ["a"]}}, "expected units that are strings, of kind"),
        ({"units": 3}, "TypeError"),
    ],
)
def test_what_is_no_description_is_told_with_its_file(tiny, tmp_path, change, told):
    content = {key: v for key, v in {**tiny.to_json(), **change}.items() if v is not None}
    path = tmp_path / "model.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match=f"model.json: not a description of a model: .*{told}"):
        read(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"'])
def test_what_is_no_json_object_is_told(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ModelError, match=r"x.json: not a description of a model: "):
        read(tmp_path / "x.json")
    with pytest.raises(ModelError, match=r"gone.json: not a description of a model: "):
        read(tmp_path / "gone.json")


def test_an_architecture_that_is_not_known_here_is_told(tiny):
    with pytest.raises(ConfigError, match="unknown model 'gone'"):
        ModelDescription("gone", tiny.features, tiny.units).empty()
