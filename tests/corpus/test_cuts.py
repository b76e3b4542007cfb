from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from fedspeech.corpus import cuts
from fedspeech.errors import CorpusError

WITHOUT_RIGHTS = """
import ctypes, os, sys
from pathlib import Path
from fedspeech.corpus import cuts
from fedspeech.errors import CorpusError

if os.geteuid() == 0:
    # Effective rights only count from here on: none of root's own.
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, sets) == 0
try:
    cuts.recording(Path(sys.argv[1]), None)
except CorpusError as error:
    print(error)
"""


def whole(path: Path, channel: int | None = None):
    return cuts.utterance("u", cuts.recording(path, channel), "a b", "s")


def peak_hertz(wave, rate: int = 16_000) -> float:
    spectrum = np.abs(np.fft.rfft(np.asarray(wave) * np.hanning(len(wave))))
    return float(np.argmax(spectrum) * rate / len(wave))


def test_missing_audio_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"nowhere\.wav: no such file"):
        cuts.recording(tmp_path / "nowhere.wav", None)


def test_unreadable_audio_is_named(tmp_path):
    path = tmp_path / "noise.wav"
    path.write_bytes(b"this is not audio" * 100)
    with pytest.raises(CorpusError, match=r"noise\.wav: unreadable audio"):
        cuts.recording(path, None)


def test_audio_in_a_folder_that_may_not_be_read(sine, child):
    """Root may read everything, so a process without that right looks."""
    path = sine("locked/tone.wav", 440)
    path.parent.chmod(0)
    try:
        done = child(WITHOUT_RIGHTS, path)
    finally:
        path.parent.chmod(0o700)
    assert done.stdout == f"{path}: unreadable audio (Permission denied)\n", done.stderr


def test_audio_of_length_zero(tmp_path):
    path = tmp_path / "empty.wav"
    soundfile.write(path, np.zeros(0), 16_000)
    with pytest.raises(CorpusError, match=r"empty\.wav: audio of length zero"):
        cuts.recording(path, None)


def test_audio_that_ends_before_it_should(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000)
    for name in ("cut.flac", "cut.wav"):
        path = tmp_path / name
        soundfile.write(path, noise, 16_000)
        cut = whole(path)
        path.write_bytes(path.read_bytes()[:12_044])
        with pytest.raises(CorpusError, match=f"{name}: "):
            cuts.samples(cut)
    with pytest.raises(CorpusError, match=r"expected 16000 samples from sample 0 on, found 6000"):
        cuts.samples(cut)


def test_audio_that_has_gone(sine):
    path = sine("gone.wav", 440)
    cut = whole(path)
    path.unlink()
    with pytest.raises(CorpusError, match=r"gone\.wav: unreadable audio"):
        cuts.samples(cut)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_another_rate_is_resampled_as_scipy_does(sine, rate):
    path = sine("tone.wav", 1_000, rate=rate, seconds=0.7)
    wave = cuts.samples(whole(path)).numpy()
    source, _ = soundfile.read(path)
    expected = resample_poly(source, 16_000, rate)
    assert abs(len(wave) - 0.7 * 16_000) <= 1
    inner = slice(400, min(len(wave), len(expected)) - 400)
    assert np.abs(wave[inner] - expected[inner]).max() < 0.005
    assert peak_hertz(wave) == pytest.approx(1_000, abs=1.5)


@pytest.mark.parametrize("rate", [44_101, 15_999])
def test_an_odd_rate_is_refused(sine, rate):
    with pytest.raises(CorpusError, match=rf"tone\.wav: {rate} samples per second, expected a us"):
        cuts.recording(sine("tone.wav", 1_000, rate=rate, seconds=0.1), None)


def test_samples_at_the_platforms_own_rate_are_those_of_the_file(tmp_path):
    values = np.arange(-16_000, 16_000, dtype=np.int16)
    path = tmp_path / "ramp.wav"
    soundfile.write(path, values, 16_000)
    wave = cuts.samples(whole(path))
    assert wave.dtype.is_floating_point and wave.shape == (32_000,)
    np.testing.assert_array_equal(wave.numpy(), values / np.float32(32_768))


def test_two_channels_are_refused_unless_told_which(sine):
    path = sine("stereo.wav", 500, 2_000)
    with pytest.raises(
        CorpusError, match=r"stereo\.wav: 2 channels, expected 1; name one .*--channel"
    ):
        cuts.recording(path, None)
    assert peak_hertz(cuts.samples(whole(path, 0))) == pytest.approx(500)
    assert peak_hertz(cuts.samples(whole(path, 1))) == pytest.approx(2_000)
    with pytest.raises(CorpusError, match="no channel 2, it has 2"):
        cuts.recording(path, 2)


@pytest.mark.parametrize("span", [(float("nan"), 0.5), (0.0, float("nan")), (0.0, float("inf"))])
def test_a_span_that_is_no_span(sine, span):
    source = cuts.recording(sine("tone.wav", 440), None)
    with pytest.raises(CorpusError, match=r"utterance u: expected a span in seconds, found \("):
        cuts.utterance("u", source, "a", "s", span=span)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers(tmp_path, value):
    path = tmp_path / "broken.wav"
    samples = np.zeros(16_000, np.float32)
    samples[7000] = value
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    with pytest.raises(CorpusError, match=r"broken\.wav: samples that are NaN or infinite"):
        cuts.samples(whole(path))


@pytest.mark.parametrize("span", [(-0.1, 0.5), (0.5, 0.6), (2.0, 0.1)])
def test_a_span_outside_the_recording(sine, span):
    source = cuts.recording(sine("tone.wav", 440), None)
    with pytest.raises(CorpusError, match=r"utterance u: .* lies outside its recording of 1 s"):
        cuts.utterance("u", source, "a", "s", span=span)


def test_an_empty_span_and_an_empty_transcript(sine):
    source = cuts.recording(sine("tone.wav", 440), None)
    with pytest.raises(CorpusError, match="utterance u: audio of length zero"):
        cuts.utterance("u", source, "a", "s", span=(0.5, 0.0))
    with pytest.raises(CorpusError, match="utterance u: empty transcript"):
        cuts.utterance("u", source, " \t", "s")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("packed.wav", {}),
        ("packed.flac", {}),
        ("packed.sph", {"format": "NIST", "subtype": "PCM_16"}),
        ("packed.ogg", {"format": "OGG", "subtype": "OPUS"}),
        ("packed.mp3", {"format": "MP3"}),
    ],
)
def test_a_part_of_a_file_is_a_slice_of_the_whole(tmp_path, name, kind):
    random = np.random.default_rng(1)
    path = tmp_path / name
    # in a slow walk a decoder that starts in the middle is off by some units; in noise it is not
    walk = np.cumsum(random.normal(size=480_000))
    soundfile.write(path, 0.5 * walk / np.abs(walk).max(), 16_000, **kind)
    decoded, _ = soundfile.read(path, dtype="float32")
    source = cuts.recording(path, None)
    assert source.num_samples == len(decoded) == 480_000
    for first in [0, 477_000, *random.integers(0, 477_000, size=60).tolist()]:
        span = first / 16_000, 3_000 / 16_000
        wave = cuts.samples(cuts.utterance("u", source, "a", "s", span=span))
        np.testing.assert_array_equal(wave.numpy(), decoded[first : first + 3_000])


def test_all_problems_are_told_but_not_thousands(spoken):
    with pytest.raises(CorpusError) as error:
        cuts.gather([spoken("s", 1, 1.0)], [f"problem {i}" for i in range(100)], "here")
    lines = str(error.value).splitlines()
    assert lines[0] == "problem 0" and lines[19] == "problem 19"
    assert lines[20:] == ["… and 80 more"]


def test_no_utterance_and_a_repeated_one(spoken):
    with pytest.raises(CorpusError, match="here: no utterance found"):
        cuts.gather([], [], "here")
    with pytest.raises(CorpusError, match="here: utterance id s-1 comes more than once"):
        cuts.gather([spoken("s", 1, 1.0), spoken("s", 2, 1.0), spoken("s", 1, 2.0)], [], "here")
