import numpy as np
import pytest

from fedspeech.testing import DummyFederation
from strategies.mean import Mean


def test_over_two_speakers_it_is_the_other_one():
    federation = DummyFederation(speakers=2)
    bases = federation.bases(Mean())
    for speaker, other in (("s00", "s01"), ("s01", "s00")):
        for name, tensor in federation.personal[other].items():
            # A sum in float64 and back gives every float32 value exactly; float64 is rounded once.
            exact = tensor.dtype.itemsize == 4
            np.testing.assert_allclose(bases[speaker][name], tensor, rtol=0 if exact else 1e-14)


@pytest.mark.parametrize("speakers", [2, 5, 9])
def test_it_is_the_naive_average_of_all_others(speakers):
    federation = DummyFederation(speakers)
    for speaker, base in federation.bases(Mean()).items():
        others = [model for s, model in federation.personal.items() if s != speaker]
        for name, tensor in base.items():
            naive = np.mean([model[name].double().numpy() for model in others], axis=0)
            rounding = 2**-24 if tensor.dtype.itemsize == 4 else 1e-14
            np.testing.assert_allclose(tensor.double().numpy(), naive, rtol=rounding, atol=1e-15)
            assert tensor.dtype == federation.generic[name].dtype


def test_it_reads_two_models_for_each_speaker():
    federation = DummyFederation(speakers=9)
    federation.bases(Mean())
    assert len(federation.readings) == 2 * 9
    assert federation.exchanges == 0
