"""Where G comes from when the settings name it."""

import pytest
from federations import results, settings, simulate

from fedspeech.errors import ConfigError, ModelError
from fedspeech.tensors import read, sha256, write
from server import generic


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSPEECH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def corpus(tone_corpus, tmp_path_factory):
    return tone_corpus(tmp_path_factory.mktemp("tones"), 5, per_round=3)


@pytest.fixture(scope="module")
def first(corpus, tmp_path_factory):
    """A run that trained its G."""
    experiment = settings(corpus, federation={"bases": ["mean"]})
    return simulate(experiment, tmp_path_factory.mktemp("first") / "run")


def with_model(corpus, path, **sections):
    federation = {"bases": ["mean"]}
    return settings(corpus, generic={"model": str(path)}, federation=federation, **sections)


def test_a_model_is_taken_as_g_and_nothing_is_trained(corpus, first, tmp_path, capsys):
    path = first / "models" / "generic.safetensors"
    run = simulate(with_model(corpus, path), tmp_path / "run")
    assert "train G" not in capsys.readouterr().err
    assert sha256(read(run / "models" / "generic.safetensors")) == sha256(read(path))
    here, there = results(run), results(first)
    assert here["loss_curves"]["generic"] == {"train_loss": [], "dev_wer": []}
    for key in ("generic", "personal", "table", "peers"):
        assert here[key] == there[key]


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (
            {"model": {"name": "tdnn-small"}},
            "model.name = tdnn-tiny, the settings say tdnn-small",
        ),
        (
            {"model": {"name": "tdnn-tiny", "width": 50}},
            "model.width = 96, the settings say 50",
        ),
        ({"units": {"kind": "characters"}}, "units.kind = words, the settings say characters"),
        ({"features": {"kind": "log-mel"}}, "features = .*'mfcc'.*, the settings say .*'log-mel'"),
    ],
)
def test_settings_that_speak_of_another_model_are_refused(corpus, first, sections, told):
    path = first / "models" / "generic.safetensors"
    with pytest.raises(ConfigError, match=rf"generic\.model: .*generic\.safetensors has {told}"):
        generic.check(with_model(corpus, path, **sections))


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["cut off", "another shape", "no description", "epochs"])
def test_a_damaged_model_is_told(corpus, first, tmp_path, damage):
    source = first / "models" / "trained.safetensors"
    path = tmp_path / "trained.safetensors"
    for suffix in (".safetensors", ".json", ".epochs.json"):
        path.with_suffix(suffix).write_bytes(source.with_suffix(suffix).read_bytes())
    generic.check(with_model(corpus, path))
    told = {
        "cut off": r"trained\.safetensors: not a readable model",
        "another shape": r"trained\.safetensors: tensor output\.bias has shape",
        "no description": r"trained\.json: not a description of a model",
        "epochs": r"trained\.epochs\.json: not the epochs of a training",
    }[damage]
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "another shape":
        model = read(source)
        write(path, {**model, "output.bias": model["output.bias"][:1].clone()})
    elif damage == "no description":
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".epochs.json").write_text("[1, 2]")
    with pytest.raises(ModelError, match=told):
        generic.check(with_model(corpus, path))
