import pytest
import torch

from fedspeech import decoding, seeding
from fedspeech.decoding import transducer
from fedspeech.decoding.transducer import Greedy
from fedspeech.models.rnnt import RNNT, Shape
from fedspeech.units import Units

WORDS = Units("words", ["<blank>", "ba", "di", "gu"])


def talkative(seed: int) -> RNNT:
    """A model that spells something: its weights are larger than those of a fresh one."""
    with seeding.scoped(seed, 0, "", "talkative"):
        model = RNNT(
            4, 4, Shape(1, 6, 1, 5, embedding=4, joint=6, stacking=1, subsampling=1)
        ).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
    return model


def heard(*lengths: int) -> torch.Tensor:
    batch = torch.zeros(len(lengths), max(lengths), 6)
    for row, length in zip(batch, lengths, strict=True):
        row[:length] = torch.randn(length, 6, generator=torch.Generator().manual_seed(length))
    return batch


def one_by_one(model: RNNT, encoded: torch.Tensor) -> list[int]:
    """Greedy search as it is told: one utterance, the whole text read anew for every unit."""
    spelled: list[int] = []
    for row in encoded:
        for _ in range(transducer.MOST_PER_STEP):
            predicted, _ = model.predict(torch.tensor([[0, *spelled]]))
            unit = int(model.join(row, predicted[0, -1]).argmax())
            if unit == 0:
                break
            spelled.append(unit)
    return spelled


LENGTHS = (12, 5, 1, 9)


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_is_spelled_as_each_utterance_alone(seed):
    model = talkative(seed)
    search = Greedy(model, len(LENGTHS))
    search.accept(heard(*LENGTHS), torch.tensor(LENGTHS))
    wanted = [one_by_one(model, heard(length)[0]) for length in LENGTHS]
    assert search.spelled == wanted and any(wanted)
    found = decoding.decode(model, heard(*LENGTHS), torch.tensor(LENGTHS), WORDS)
    assert found == [WORDS.decode(numbers) for numbers in wanted]


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_state_is_carried_over_chunks_of_any_size(chunk):
    model, encoded = talkative(1), heard(*LENGTHS)
    search = Greedy(model, len(LENGTHS))
    for start in range(0, 12, chunk):
        left = torch.tensor([min(max(length - start, 0), chunk) for length in LENGTHS])
        before = [list(spelled) for spelled in search.spelled]
        search.accept(encoded[:, start : start + chunk], left)
        for old, new in zip(before, search.spelled, strict=True):
            assert new[: len(old)] == old
    assert search.spelled == [
        one_by_one(model, row[:n]) for row, n in zip(encoded, LENGTHS, strict=True)
    ]


def test_a_model_that_would_never_stop_is_stopped():
    model = talkative(0)
    with torch.no_grad():
        model.output.bias[2] = 1000.0
    search = Greedy(model, 1)
    search.accept(heard(3), torch.tensor([3]))
    assert search.spelled == [[2] * 3 * transducer.MOST_PER_STEP]


def test_no_steps_give_no_text():
    assert decoding.decode(talkative(0), heard(3), torch.tensor([0]), WORDS) == [""]
