import hashlib
import os

import pytest
from lhotse import CutSet

from fedspeech import corpus
from fedspeech.config.corpus import CorpusSettings, PartitionSettings, TrainPart
from fedspeech.corpus import statistics
from fedspeech.corpus.partition import partition
from fedspeech.errors import CorpusError


def test_table_1_of_a_case_counted_by_hand(spoken):
    speech = CutSet.from_cuts(
        [
            *(spoken("a", i, 3.0, "one two three") for i in range(2)),
            spoken("b", 0, 5.0, "one"),
            spoken("c", 0, 7.0, "one two"),
            *(spoken("d", i, 2.0, "one two") for i in range(5)),
            *(spoken("e", i, 3.0, "one") for i in range(4)),
        ]
    )
    settings = PartitionSettings(generic=3, train=TrainPart(fraction=0.5))
    rows = statistics.table(partition(speech, settings))
    assert rows == [
        {
            "part": "generic",
            "speakers": 2,
            "utterances": 3,
            "words": 7,
            "hours": 11 / 3600,
            "seconds_per_speaker": {"mean": 5.5, "least": 5.0, "most": 6.0},
        },
        {
            "part": "development",
            "speakers": 1,
            "utterances": 1,
            "words": 2,
            "hours": 7 / 3600,
            "seconds_per_speaker": {"mean": 7.0, "least": 7.0, "most": 7.0},
        },
        {
            "part": "train_s",
            "speakers": 2,
            "utterances": 4,
            "words": 6,
            "hours": 10 / 3600,
            "seconds_per_speaker": {"mean": 5.0, "least": 4.0, "most": 6.0},
        },
        {
            "part": "test_s",
            "speakers": 2,
            "utterances": 5,
            "words": 8,
            "hours": 12 / 3600,
            "seconds_per_speaker": {"mean": 6.0, "least": 6.0, "most": 6.0},
        },
    ]


def test_the_fingerprint_changes_with_whatever_the_figures_depend_on(sine, manifest):
    sine("a.wav", 440)
    entry = {"id": "u1", "speaker": "anna", "audio": "a.wav", "text": "hello"}

    def fingerprint(**changes) -> str:
        path = manifest({**entry, **changes}, {**entry, "id": "u2"})
        return statistics.fingerprint(corpus.load(CorpusSettings(path=str(path))))

    first = fingerprint()
    assert first == fingerprint() and len(first) == 64
    changes = [
        {"id": "u3"},
        {"speaker": "berta"},
        {"text": "hallo"},
        {"start": 0.1, "duration": 0.5},
        {"round": 2},  # train_s may be chosen by it
    ]
    assert first not in {fingerprint(**change) for change in changes}
    assert len({fingerprint(**change) for change in changes}) == len(changes)
    sine("a.wav", 440, subtype="PCM_24")
    assert fingerprint() != first


def test_the_sound_is_that_of_the_bytes_and_is_read_again_where_a_file_has_changed(
    sine, manifest, tmp_path, monkeypatch
):
    files = [sine("a.wav", 440), sine("b.wav", 220)]
    about = {"speaker": "anna", "text": "hello"}
    entries = [{**about, "id": i, "audio": name} for i, name in zip("123", "aba", strict=True)]
    path = manifest(*({**entry, "audio": f"{entry['audio']}.wav"} for entry in entries))
    cuts = list(corpus.load(CorpusSettings(path=str(path))))

    def expected() -> str:
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    first = statistics.sound(cuts, tmp_path / "cache")
    assert first == expected()
    changed = bytearray(files[1].read_bytes())
    changed[-1] ^= 1
    files[1].write_bytes(changed)
    os.utime(files[1], ns=(0, 0))  # a clock may be too coarse for two changes
    assert statistics.sound(cuts, tmp_path / "cache") == expected() != first
    with monkeypatch.context() as patched:
        patched.delattr(statistics, "sha256_of_file")
        assert statistics.sound(cuts, tmp_path / "cache") == expected()
    files[0].unlink()
    with pytest.raises(CorpusError, match=r"cannot read the speech: .*a\.wav"):
        statistics.sound(cuts, tmp_path / "cache")
