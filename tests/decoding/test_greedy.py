import itertools

import pytest
import torch

from fedspeech.decoding import greedy
from fedspeech.units import Units

WORDS = Units("words", ["<blank>", "ba", "di"])
LETTERS = Units("characters", ["<blank>", "▁", "a"])


def collapsed(path: tuple[int, ...]) -> list[int]:
    """Repetitions joined, then blanks removed, as Graves et al. 2006 define it."""
    return [unit for unit, _ in itertools.groupby(path) if unit != 0]


@pytest.mark.parametrize("units", [WORDS, LETTERS], ids=["words", "characters"])
@pytest.mark.parametrize("seed", range(20))
def test_the_text_is_that_of_the_most_likely_alignment(units, seed):
    frames = 1 + seed % 6
    logits = torch.randn(1, frames, 3, generator=torch.Generator().manual_seed(seed))
    log_p = logits[0].double().log_softmax(1)
    paths = itertools.product(range(3), repeat=frames)
    best = max(paths, key=lambda path: sum(log_p[t, unit].item() for t, unit in enumerate(path)))
    assert greedy.decode(logits, torch.tensor([frames]), units) == [units.decode(collapsed(best))]


def logits_of(*paths: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(paths), 3).float()


def test_a_blank_parts_repetitions_and_padding_is_not_read():
    logits = logits_of([1, 1, 0, 1, 2, 2], [0, 0, 0, 2, 1, 2], [2, 1, 2, 1, 2, 1])
    assert greedy.decode(logits, torch.tensor([6, 3, 1]), WORDS) == ["ba ba di", "", "di"]


def test_no_frames_give_no_text():
    assert greedy.decode(logits_of([1, 1]), torch.tensor([0]), WORDS) == [""]
