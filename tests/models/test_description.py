import json

import pytest
import torch

from fedspeech import models
from fedspeech.config.model import FeatureSettings, ModelSettings, UnitSettings
from fedspeech.errors import ConfigError, ModelError
from fedspeech.models.description import ModelDescription, check_as_set, read
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


def test_a_file_keeps_the_sizes_that_are_others_than_the_names(tiny, tmp_path):
    assert set(tiny.to_json()) == {"name", "features", "units"}
    settings = ModelSettings(name="rnnt-tiny", encoder_units=30, projection=20, bypass=True)
    about = ModelDescription.of(settings, tiny.features, tiny.units)
    about.write(tmp_path / "model.json")
    found = read(tmp_path / "model.json")
    assert found.sizes == {"encoder_units": 30, "projection": 20, "bypass": True}
    assert found.empty().encoder[1].weight_hr_l0.shape == (20, 30)
    assert found.to_json() == about.to_json()
    found.check(state(about.empty()))
    with pytest.raises(ModelError, match=r"weight_hr_l0 is not in the model"):
        ModelDescription("rnnt-tiny", tiny.features, tiny.units).check(state(about.empty()))


def test_sizes_are_compared_with_those_of_the_settings(tiny, tmp_path):
    def compare(ours: dict[str, int], theirs: dict[str, int]) -> None:
        about = ModelDescription("rnnt-tiny", tiny.features, tiny.units, theirs)
        model, units = ModelSettings(name="rnnt-tiny", **ours), UnitSettings(kind="words")
        check_as_set("x.file", tmp_path / "g", about, "student", model, tiny.features, units)

    compare({}, {})
    compare({"encoder_units": 96}, {})  # as the name says
    compare({"joint": 7}, {"joint": 7})
    told = "x.file: .*g has student.encoder_units = 96, the settings say 30"
    with pytest.raises(ConfigError, match=told):
        compare({"encoder_units": 30}, {})
    with pytest.raises(ConfigError, match=r"student.projection = 40, the settings say 0"):
        compare({}, {"projection": 40})


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
        ({"sizes": {"width": 0}}, "sizes.width: Input should be greater"),
        ({"sizes": {"width": 10**9}}, "sizes.width: Input should be less"),
        ({"sizes": {"breadth": 9}}, "sizes.breadth: Extra inputs"),
        ({"sizes": 3}, "TypeError"),
        ({"sizes": {"joint": 9}}, "model.joint: a tdnn-tiny has width instead"),
        ({"name": "tdn"}, "model.name: unknown model 'tdn'"),
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
