"""What a device takes of what is signed: never without its key, never backwards."""

import itertools
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedspeech import signing
from fedspeech.device.trust import TRUST, Trust, check
from fedspeech.errors import DiskError, SignatureError
from fedspeech.signing import Release, Rotation

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(1, 5)]
NAMES = [signing.public(key) for key in KEYS]
TIME = "2026-01-31T12:00:00Z"
LINE = "demo"
ABOUT = {"units": ["yes", "no"]}


def signed(sequence: int, model: str = "a", key: int = 0, line: str = LINE) -> bytes:
    release = Release(line, sequence, model * 64, signing.hash_of(ABOUT), signing.NO_BASE, TIME)
    return signing.sign_release(release, KEYS[key])


def turn(old: int, new: int) -> bytes:
    return signing.sign_rotation(Rotation(NAMES[new], TIME), KEYS[old])


@pytest.fixture
def trust(tmp_path) -> Trust:
    found = Trust(tmp_path)
    found.pin(NAMES[0])
    return found


def accept(trust: Trust, data: bytes, model: str = "a") -> int:
    return trust.accept(data, model * 64, signing.hash_of(ABOUT)).sequence


def refused(trust: Trust, data: bytes, model: str = "a") -> str:
    """And nothing has changed by it."""
    before = trust._path.read_bytes()
    with pytest.raises(SignatureError) as error:
        accept(trust, data, model)
    assert trust._path.read_bytes() == before
    return str(error.value)


def test_releases_go_forward_and_never_back(trust, tmp_path):
    assert accept(trust, signed(2)) == 2
    assert accept(Trust(tmp_path), signed(2)) == 2  # sent again: the device was killed
    assert accept(trust, signed(5, "b"), "b") == 5
    again = Trust(tmp_path)  # what was accepted outlives the process
    told = "release 2 of 'demo' is older than 5, which this device has accepted"
    assert refused(again, signed(2)) == told
    assert refused(again, signed(4, "b"), "b").startswith("release 4 of 'demo' is older than 5")
    assert refused(again, signed(5, "c"), "c") == "release 5 of 'demo' was another model before"
    assert accept(again, signed(5, "b"), "b") == 5


def test_a_device_follows_one_line_until_its_owner_names_another(trust, tmp_path):
    """However new a release of another one is, it is signed by the same key."""
    assert accept(trust, signed(3)) == 3
    for sequence in (1, 9):
        told = refused(trust, signed(sequence, "b", line="old"), "b")
        assert told.startswith("line: signed for 'old', and this device follows 'demo'; its owner")
        with pytest.raises(SignatureError, match="line: signed for 'old'"):
            check(tmp_path, [signed(sequence, "b", line="old").decode()], "b" * 64, ABOUT)
    trust.pin(NAMES[0], "old")
    assert accept(trust, signed(1, "b", line="old"), "b") == 1
    assert refused(trust, signed(4)).startswith("line: signed for 'demo', and this device follows")
    trust.pin(NAMES[0])  # the line stays
    assert refused(trust, signed(4)).startswith("line: signed for 'demo'")
    trust.pin(NAMES[0], LINE)
    assert refused(trust, signed(2)).startswith("release 2 of 'demo' is older than 3")


def test_the_line_may_be_named_before_the_first_release(tmp_path):
    trust = Trust(tmp_path)
    trust.pin(NAMES[0], LINE)
    assert refused(trust, signed(9, line="other")).startswith("line: signed for 'other', and this")
    assert accept(trust, signed(1)) == 1


def test_what_is_not_the_servers_is_refused(trust):
    assert refused(trust, b"") == "not signed"
    assert refused(trust, signed(1, key=1)).startswith(f"signed by the key {NAMES[1][:12]}, exp")
    forged = signed(1, key=1).replace(NAMES[1].encode(), NAMES[0].encode())
    assert refused(trust, forged) == f"the signature is not that of the key {NAMES[0][:12]}"
    told = refused(trust, signed(1, "b"))
    assert told == f"model: signed for {'b' * 64!r}, expected {'a' * 64!r}"


def test_what_the_words_are_is_signed_too(trust, tmp_path):
    told = f"description: signed for '{signing.hash_of(ABOUT)}', expected '"
    with pytest.raises(SignatureError, match=told):
        check(tmp_path, [signed(1).decode()], "a" * 64, {"units": ["no", "yes"]})
    check(tmp_path, [signed(1).decode()], "a" * 64, ABOUT)
    said = Release(LINE, 1, "a" * 64, "d" * 64, signing.NO_BASE, TIME)
    with pytest.raises(SignatureError, match="release 1 of 'demo' was another model before"):
        trust.accept(signing.sign_release(said, KEYS[0]), "a" * 64, "d" * 64)


def test_without_a_key_nothing_is_accepted(tmp_path):
    trust = Trust(tmp_path)
    assert trust.key is None
    for ask in (lambda: accept(trust, signed(1)), lambda: trust.follow([turn(0, 1)])):
        with pytest.raises(SignatureError, match=r"trust\.json: no key is pinned"):
            ask()
    assert not (tmp_path / TRUST).exists()


def test_a_key_is_pinned_once(trust):
    trust.pin(NAMES[0])
    with pytest.raises(SignatureError, match=f"the key {NAMES[0][:12]} is pinned already"):
        trust.pin(NAMES[1])
    assert trust.key == NAMES[0]


def test_a_new_key_takes_over_and_the_old_one_counts_no_more(trust, tmp_path):
    accept(trust, signed(3))
    assert trust.follow([turn(0, 1)]) == NAMES[1]
    again = Trust(tmp_path)
    assert again.key == NAMES[1]
    assert refused(again, signed(4)).startswith(f"signed by the key {NAMES[0][:12]}, expected")
    assert refused(again, signed(2, key=1)).startswith("release 2 of 'demo' is older than 3")
    assert accept(again, signed(4, key=1)) == 4


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_a_device_that_was_away_follows_all_of_them(trust, order):
    """Their files are called as their keys are, so that they come in any order."""
    chain = [turn(0, 1), turn(1, 2), turn(2, 3)]
    assert trust.follow(chain[:1]) == NAMES[1]
    assert trust.follow(chain[number] for number in order) == NAMES[3]
    assert trust.follow(chain[number] for number in order) == NAMES[3]


def test_nobody_leads_a_device_back_to_a_key_that_it_left(trust):
    trust.follow([turn(0, 1)])
    with pytest.raises(SignatureError, match=f"the key {NAMES[0][:12]} counts no more"):
        trust.follow([turn(1, 0)])
    assert trust.follow([turn(0, 2)]) == NAMES[1]  # by the old key: passed over
    forged = turn(2, 3).replace(f"key: {NAMES[2]}".encode(), f"key: {NAMES[1]}".encode())
    with pytest.raises(SignatureError, match="the signature is not that of the key"):
        trust.follow([forged])
    assert trust.key == NAMES[1]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"key": 1}'])
def test_a_damaged_file_takes_nothing(trust, tmp_path, content):
    (tmp_path / TRUST).write_text(content)
    with pytest.raises(SignatureError, match=r"trust\.json: not readable"):
        accept(trust, signed(1))
    with pytest.raises(SignatureError, match=r"trust\.json: not readable"):
        trust.pin(NAMES[1])


def test_what_cannot_be_written_down_is_not_accepted(small_disk):
    folder, resize = small_disk
    trust = Trust(folder)
    trust.pin(NAMES[0])
    (folder / "full").write_bytes(bytes(2**15))
    resize(2**15 + 2 * 4096)
    with pytest.raises(DiskError, match=r"cannot write .*trust\.json"):
        for number in range(1, 200):
            line = "x" * 90 + str(number)
            trust.pin(NAMES[0], line)
            accept(trust, signed(number, line=line))
    lines = json.loads((folder / TRUST).read_text())["lines"]
    assert sorted(lines[name]["sequence"] for name in lines) == list(range(1, len(lines) + 1))
