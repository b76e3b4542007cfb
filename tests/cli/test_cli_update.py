"""`fedspeech device update`: releases out of files, for a device that meets no server."""

import itertools
import json
from dataclasses import replace

import pytest
from bare import command

from fedspeech import key_files, seeding, signed_line, signing, tensors
from fedspeech.config.model import FeatureSettings
from fedspeech.device.lock import locked
from fedspeech.device.store import Store
from fedspeech.device.trust import Trust
from fedspeech.diff import apply, budget, wire
from fedspeech.diff.budget import exact
from fedspeech.models.description import ModelDescription
from fedspeech.releases import Releases
from fedspeech.units import Units

ABOUT = ModelDescription("tdnn-tiny", FeatureSettings(), Units("words", ["", "no", "yes"]))
REVERSED = ModelDescription("tdnn-tiny", FeatureSettings(), Units("words", ["", "yes", "no"]))


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return key_files.make_key(tmp_path_factory.mktemp("keys") / "release.key")


@pytest.fixture(scope="module")
def line(tmp_path_factory, key):
    """Three releases, of which the last one has its words in another order."""
    folder = tmp_path_factory.mktemp("lines") / "asr"
    folder.mkdir()
    models = []
    for number in range(3):
        with seeding.scoped(number, 0, "", "a release"):
            models.append(tensors.state(ABOUT.empty()))
    tensors.write(folder / "0000.safetensors", models[0])
    found = Releases(folder)
    held = found.begin(folder / "0000.safetensors")
    for before, after in itertools.pairwise(models):
        found.add(held, held := tensors.sha256(after), exact(before, after))
    for name, about in zip(found.names, (ABOUT, ABOUT, REVERSED), strict=True):
        found.describe(name, about.to_json())
    signed_line.sign(found, key)
    return found


@pytest.fixture
def device(tmp_path, line, key):
    """A device that has pinned the key, and holds the first release."""
    folder = tmp_path / "device"
    Trust(folder).pin(signing.public(key))
    store = Store(folder / "models")
    store.put("generic", line.model(line.names[0]), description=ABOUT.to_json())
    return folder


@pytest.fixture
def update(fedspeech, device, line):
    def run(file, signed=None, description=None):
        options = [] if signed is None else ["--signed", line.folder / signed]
        options += [] if description is None else ["--description", line.folder / description]
        return fedspeech("device", "update", device, line.folder / file, *options)

    return run


def refused(done) -> str:
    """What the one message says."""
    status, out, err = done
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    return err


def test_a_device_without_flower_goes_from_release_to_release(tmp_path, line, key):
    folder, of = tmp_path / "device", line.folder
    Trust(folder).pin(signing.public(key))
    described = [of / f"{line.described(name)}.json" for name in line.names]
    options = ["--signed", of / "0000.signed", "--description", described[0]]
    done = command("device", "update", folder, of / "0000.safetensors", *options)
    told = "the owner is recognized with G\n"
    assert (done.stdout, done.stderr) == (f"generic: {line.names[0]}\n{told}", "")
    done = command("device", "update", folder, of / "0001.diff", "--signed", of / "0001.signed")
    assert (done.stdout, done.stderr) == (f"generic: {line.names[1]}\n{told}", "")
    store = Store(folder / "models")
    assert tensors.sha256(store.get("generic")) == line.names[1]
    assert store.state()["description"] == ABOUT.to_json()
    assert folder.stat().st_mode & 0o777 == 0o700
    done = command("device", "rollback", folder)
    assert done.stdout == f"generic: {line.names[0]}\n"


def test_what_is_not_signed_for_this_device_is_refused(update, device, line, key, tmp_path):
    before = Store(device / "models").state()
    assert "not signed" in refused(update("0001.diff"))
    assert "model: signed for" in refused(update("0001.diff", "0000.signed"))
    stranger = key_files.make_key(tmp_path / "strangers.key")
    said = signing.read_release((line.folder / "0001.signed").read_bytes(), signing.public(key))
    (tmp_path / "x.signed").write_bytes(signing.sign_release(said, stranger))
    told = refused(update("0001.diff", tmp_path / "x.signed"))
    assert "signed by the key" in told
    (tmp_path / "x.signed").write_bytes(signing.sign_release(said._replace(line="old"), key))
    assert update("0001.diff", "0001.signed")[0] == 0
    told = refused(update("0001.diff", tmp_path / "x.signed"))
    assert "line: signed for 'old', and this device follows 'asr'" in told
    assert Store(device / "models").state()["previous"]["generic"]["generic"] == before["generic"]


def test_an_older_release_is_refused_as_a_whole_too(update, device, line):
    assert update("0001.diff", "0001.signed")[0] == 0
    told = refused(update("0000.safetensors", "0000.signed"))
    assert "release 1 of 'asr' is older than 2" in told
    assert Store(device / "models").hash("generic") == line.names[1]


def with_nan(old: tensors.Tensors, data: bytes) -> bytes:
    """The diff with a change that is no number, and the hash of what it gives."""
    diff = wire.decode(data)
    found = [entry for entry in diff.entries if entry.name == "output.bias"]
    codes = found[0].segments[0].codes.copy()
    codes[0] = 0xFF80_0000  # 0x7fc00000, rotated left by one
    wrong = replace(found[0], segments=(replace(found[0].segments[0], codes=codes),))
    diff = replace(diff, entries=tuple(wrong if e is found[0] else e for e in diff.entries))
    result = tensors.sha256(dict(apply.update(sorted(old.items()), diff)))
    return wire.encode(replace(diff, result=result))


@pytest.mark.parametrize("what", ["another shape", "no numbers"])
def test_a_diff_to_what_is_no_model_of_the_device_changes_nothing(fedspeech, tmp_path, line, what):
    """Whoever makes a diff names its result: that the hash fits is not enough."""
    model, store = line.model(line.names[0]), Store(tmp_path / "device" / "models")
    store.put("generic", model, description=ABOUT.to_json())
    files = sorted(store.folder.glob("*.safetensors"))
    if what == "another shape":
        about = replace(ABOUT, units=Units("words", ["", "no", "yes", "maybe"]))
        data = exact(model, tensors.state(about.empty()))
        told = "tensor output.bias has shape (4,), the model has (3,)"
    else:
        data = with_nan(model, budget.make(model, line.model(line.names[1])).data)
        told = "tensor output.bias has values that are NaN or infinite"
    (tmp_path / "x.diff").write_bytes(data)
    assert told in refused(fedspeech("device", "update", tmp_path / "device", tmp_path / "x.diff"))
    assert store.hash("generic") == line.names[0] == tensors.sha256(store.get("generic"))
    assert sorted(store.folder.glob("*.safetensors")) == files


def test_a_release_comes_with_its_words(update, device, line):
    assert update("0001.diff", "0001.signed")[0] == 0
    assert "description: signed for" in refused(update("0002.diff", "0002.signed"))
    about = f"{line.described(line.names[2])}.json"
    assert update("0002.diff", "0002.signed", about)[0] == 0
    assert Store(device / "models").state()["description"] == REVERSED.to_json()


def test_what_was_left_out_may_still_come(update, device, line):
    """A diff that is not for what is held does not make the one before it too old."""
    about = f"{line.described(line.names[2])}.json"
    told = refused(update("0002.diff", "0002.signed", about))
    assert f"the diff is for the model {line.names[1]}" in told
    assert update("0001.diff", "0001.signed")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("device", "nowhere.diff"), "nowhere.diff: not a readable diff: No such file"),
        (("nowhere", "0001.diff"), "nowhere: no device's models here; the first one comes as a"),
        (("device/models", "0001.diff"), "device/models: expected the folder of a device"),
        (("empty", "0000.safetensors"), "0000.safetensors: what this model needs is not known"),
        (("device", "0001.diff", "--signed", "no"), "no: cannot be read: "),
        (("device", "0001.diff", "--description", "no"), "no: not a description of a model"),
    ],
)
def test_what_is_missing_is_one_message(fedspeech, device, line, monkeypatch, arguments, told):
    monkeypatch.chdir(device.parent)
    folder, file, *options = arguments
    file = line.folder / file
    err = refused(fedspeech("device", "update", folder, file, *options))
    assert told in err
    assert not (device.parent / "nowhere").exists()


def test_a_model_that_is_not_what_is_said_of_it_is_refused(fedspeech, device, line, tmp_path):
    other = ModelDescription("tdnn-tiny", FeatureSettings(), Units("words", ["", "a", "b", "c"]))
    (tmp_path / "about.json").write_text(json.dumps(other.to_json()))
    options = ["--description", tmp_path / "about.json"]
    file = line.folder / "0000.safetensors"
    done = fedspeech("device", "update", tmp_path / "new", file, *options)
    assert "has shape" in refused(done)


def test_nobody_updates_while_the_client_is_at_work(update, device):
    with locked(device / "models"):
        assert "another process is at work" in refused(update("0001.diff", "0001.signed"))
    assert update("0001.diff", "0001.signed")[0] == 0


def test_who_has_a_personal_model_goes_on_with_it(update, device, line):
    store = Store(device / "models")
    store.put(
        "recognizer",
        line.model(line.names[2]),
        alpha=1.0,
        hears={"description": ABOUT.to_json(), "normalization": None},
    )
    _, out, _ = update("0001.diff", "0001.signed")
    assert out.splitlines()[-1] == "the owner is recognized with P_s"
