import numpy as np
import pytest
from coordinate_median import CoordinateMedian

from fedspeech.testing import DummyFederation, check_rule


def test_it_keeps_what_every_rule_promises():
    check_rule(CoordinateMedian)


@pytest.mark.parametrize("speakers", [2, 5, 6])
def test_it_is_numpys_median_of_the_others(speakers):
    federation = DummyFederation(speakers)
    for speaker, base in federation.bases(CoordinateMedian()).items():
        for name, tensor in base.items():
            others = [m[name].numpy() for s, m in federation.personal.items() if s != speaker]
            np.testing.assert_allclose(tensor.numpy(), np.median(others, axis=0), rtol=1e-6)


def test_one_wild_model_does_not_move_it():
    federation = DummyFederation(speakers=6)
    for tensor in federation.personal["s05"].values():
        tensor.fill_(1e30)
    base = federation.bases(CoordinateMedian())["s00"]
    assert max(float(tensor.abs().max()) for tensor in base.values()) < 100


def test_alone_a_speaker_gets_the_generic_model():
    federation = DummyFederation(speakers=1)
    base = federation.bases(CoordinateMedian())["s00"]
    assert all(bool((base[name] == tensor).all()) for name, tensor in federation.generic.items())
