"""`fedspeech box` and `--on deployment`: what is wrong is said before anything starts."""

import json
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

CERTIFICATE = "ca.crt"


@pytest.fixture
def box(tmp_path, fedspeech, tone_corpus):
    """The command with everything as it should be; arguments replace what they name."""
    key = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    (tmp_path / "box.key").write_bytes(key)
    usual = {
        "server": "localhost:1",
        "ca": tmp_path / CERTIFICATE,
        "key": tmp_path / "box.key",
        "speech": tone_corpus(tmp_path / "speech", 1),
        "device": tmp_path / "device",
    }

    def run(**replaced):
        options = [
            word for name, value in {**usual, **replaced}.items() for word in (f"--{name}", value)
        ]
        return fedspeech("box", *options)

    return run


@pytest.mark.parametrize(
    ("replaced", "told"),
    [
        ({"server": "localhost"}, "--server: expected HOST:PORT, found 'localhost'"),
        ({"ca": "nowhere.crt"}, "nowhere.crt: not a CA's certificate as a PEM file"),
    ],
)
def test_what_is_wrong_is_one_line(box, replaced, told):
    status, _, err = box(**replaced)
    assert status == 2
    assert told in err
    assert len(err.splitlines()) == 1


def test_a_key_that_cannot_be_read_is_one_line(box, tmp_path, monkeypatch):
    monkeypatch.setattr("fedspeech.connection.trusting", lambda ca: None)
    monkeypatch.setattr("os.access", lambda *_, **__: False)  # root may read everything
    status, _, err = box(key=tmp_path)
    assert status == 2
    assert err == f"fedspeech: {tmp_path}: Is a directory\n"


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ("500kB", "--budget: expected generic, base or personal = bytes, each once, found '500kB'"),
        ("base=lots", "--budget base: budget: expected bytes (500kB, 64KiB) or a ratio (10x)"),
    ],
)
def test_a_budget_that_is_none_is_one_line(box, tmp_path, monkeypatch, budget, told):
    monkeypatch.setattr("fedspeech.connection.trusting", lambda ca: None)
    status, _, err = box(budget=budget)
    assert status == 2
    assert told in err and len(err.splitlines()) == 1
    assert not (tmp_path / "device").exists()


def test_a_folder_without_speech_is_told(box, tmp_path, monkeypatch):
    monkeypatch.setattr("fedspeech.connection.trusting", lambda ca: None)
    (tmp_path / "empty").mkdir()
    status, _, err = box(speech=tmp_path / "empty")
    assert status == 2
    assert f"{tmp_path / 'empty'}: no speech here" in err


def test_a_device_of_somebody_else_is_told(box, tmp_path, monkeypatch):
    monkeypatch.setattr("fedspeech.connection.trusting", lambda ca: None)
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "device.json").write_text(json.dumps({"speaker": "ben"}))
    status, _, err = box(name="anna")
    assert status == 2
    assert "this is ben's device, not anna's" in err


@pytest.mark.parametrize(
    ("on", "told"),
    [
        (("ray", "home"), "--on: expected deployment NAME, found ray home"),
        (("deployment", "nowhere"), "deployment nowhere: no [superlink.nowhere] in"),
    ],
)
def test_where_to_run_is_a_deployment_that_flower_knows(
    fedspeech, tmp_path, monkeypatch, tone_corpus, on, told
):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    corpus = tone_corpus(tmp_path / "tones", 4)
    file = tmp_path / "small.toml"
    file.write_text(f"[corpus]\npath = {json.dumps(str(corpus))}\n[partition]\ngeneric = 3\n")
    status, _, err = fedspeech("run", file, "--out", tmp_path / "run", "--on", *on)
    assert status == 2
    assert told in err
    assert not (tmp_path / "run").exists()


def test_simulated_time_and_boxes_exclude_each_other(fedspeech, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text("[federation.participation]\nsample = 0.5\n")
    status, _, err = fedspeech("run", file, "--on", "deployment", "home")
    assert status == 2
    assert "federation.participation is simulated time" in err


@pytest.mark.parametrize(("given", "told"), [({}, {}), ({"channel": 1}, {"channel": 1})])
def test_the_box_is_told_which_channel_to_take(box, monkeypatch, given, told):
    run = []
    monkeypatch.setattr("fedspeech.connection.trusting", lambda ca: None)
    monkeypatch.setattr("fedspeech.apps.find", lambda name: SimpleNamespace(load=lambda: start))

    def start(server, ca, key, port, settings):
        run.append(settings)

    box(**given)
    (settings,) = run
    assert {name: settings[name] for name in settings if name == "channel"} == told
