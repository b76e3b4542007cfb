import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedspeech import seeding

NAMES = (3, 1, "anna", "noise")
OTHERS = [
    (4, 1, "anna", "noise"),
    (3, 2, "anna", "noise"),
    (3, 1, "anne", "noise"),
    (3, 1, "anna", "x"),
]
OTHERS += [(31, 1, "anna", "noise"), (3, 1, "annan", "oise"), (1, 3, "anna", "noise")]


def test_key_is_the_first_63_bits_of_a_sha256():
    digest = hashlib.sha256(b'[3, 1, "anna", "noise"]').digest()
    wanted = sum(byte << (8 * place) for place, byte in enumerate(digest[:8])) // 2
    assert seeding.key(*NAMES) == wanted
    assert 0 <= wanted < 2**63


def test_names_beyond_ascii_have_a_key_of_their_own():
    digest = hashlib.sha256(b'[0, 0, "\\u0639\\"", ""]').digest()
    assert seeding.key(0, 0, 'ع"', "") == int.from_bytes(digest[:8], "little") // 2


@given(st.integers(), st.integers(), st.text(), st.text())
def test_key_follows_from_the_names_alone(seed, round, speaker, purpose):
    found = seeding.key(seed, round, speaker, purpose)
    assert found == seeding.key(seed, round, speaker, purpose)
    assert 0 <= found < 2**63


@pytest.mark.parametrize("other", OTHERS)
def test_each_of_the_four_names_changes_what_is_drawn(other):
    def numpy_draws(names):
        return seeding.generator(*names).integers(2**63, size=4).tolist()

    def torch_draws(names):
        with seeding.scoped(*names):
            return torch.randint(2**62, (4,)).tolist()

    for draws in (numpy_draws, torch_draws):
        assert draws(NAMES) == draws(NAMES)
        assert not set(draws(NAMES)) & set(draws(other))


def test_the_generator_is_numpys_pcg64_of_the_key():
    own = np.random.Generator(np.random.PCG64(seeding.key(*NAMES)))
    assert seeding.generator(*NAMES).normal(size=3).tolist() == own.normal(size=3).tolist()


def test_scoped_draws_as_a_generator_of_its_own_and_restores_pytorchs():
    torch.manual_seed(5)
    first = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(2), first)
    second = torch.rand(2)
    torch.manual_seed(5)
    torch.rand(2)
    with seeding.scoped(*NAMES):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(2), second)
    own = torch.Generator().manual_seed(seeding.key(*NAMES))
    assert torch.equal(inside, torch.rand(3, generator=own))


def test_scoped_restores_after_an_error():
    torch.manual_seed(5)
    wanted = torch.rand(2)
    torch.manual_seed(5)
    with pytest.raises(ZeroDivisionError), seeding.scoped(*NAMES):
        torch.rand(1)
        raise ZeroDivisionError
    assert torch.equal(torch.rand(2), wanted)
