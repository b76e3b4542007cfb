import itertools
import math
from functools import cache, partial

import numpy as np
import pytest
import torch

from fedspeech import seeding
from fedspeech.decoding import beam, transducer
from fedspeech.decoding.beam import Beam
from fedspeech.models.rnnt import RNNT, Shape
from fedspeech.units import Units

UNITS = 3
WORDS = Units("words", ["<blank>", "ba", "di"])
LENGTHS = (4, 2, 1, 3)


def talkative(seed: int) -> RNNT:
    """A model that spells something: its weights are larger than those of a fresh one."""
    with seeding.scoped(seed, 0, "", "talkative"):
        model = RNNT(
            4, UNITS, Shape(1, 6, 1, 5, embedding=4, joint=6, stacking=1, subsampling=1)
        ).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
    return model


def heard(*lengths: int) -> torch.Tensor:
    batch = torch.zeros(len(lengths), max(lengths), 6)
    for row, length in zip(batch, lengths, strict=True):
        row[:length] = torch.randn(length, 6, generator=torch.Generator().manual_seed(length))
    return batch


def enumerated(model: RNNT, encoded: torch.Tensor, most: int) -> dict[tuple[int, ...], float]:
    """p of every text, over all alignments with at most so many units in a step.

    An alignment is what was spelled in each step; nothing is shared between any two of them.
    """
    some = [units for count in range(most + 1) for units in itertools.product((1, 2), repeat=count)]
    found: dict[tuple[int, ...], float] = {}
    rows, known = list(encoded), cache(partial(next_unit, model))
    for steps in itertools.product(some, repeat=len(encoded)):
        spelled: tuple[int, ...] = ()
        log_p = 0.0
        for row, units in zip(rows, steps, strict=True):
            for unit in (*units, 0):
                log_p += known(row, spelled)[unit]
                spelled += (unit,) if unit else ()
        found[spelled] = found.get(spelled, 0.0) + math.exp(log_p)
    return found


def next_unit(model: RNNT, row: torch.Tensor, spelled: tuple[int, ...]) -> np.ndarray:
    predicted, _ = model.predict(torch.tensor([[0, *spelled]]))
    joint = np.tanh((row + predicted[0, -1]).detach().double().numpy())
    logits = model.output.weight.detach().double().numpy() @ joint
    logits += model.output.bias.detach().double().numpy()
    return logits - np.log(np.exp(logits).sum())


@pytest.fixture
def short(monkeypatch):
    """At most two units in a step, so that all alignments can be walked through."""
    monkeypatch.setattr(beam, "MOST_PER_STEP", 2)


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_that_holds_all_texts_finds_the_probability_of_each(short, seed):
    model, encoded = talkative(seed), heard(*LENGTHS)
    search = Beam(model, len(LENGTHS), width=10_000)
    search.accept(encoded, torch.tensor(LENGTHS))
    for texts, row, length in zip(search.texts, encoded, LENGTHS, strict=True):
        wanted = enumerated(model, row[:length], most=2)
        found = {text.spelled: math.exp(text.score) for text in texts}
        assert set(found) == set(wanted)
        np.testing.assert_allclose(
            [found[text] for text in wanted], list(wanted.values()), rtol=1e-4
        )
        scores = [text.score for text in texts]
        assert scores == sorted(scores, reverse=True)


def test_sixteen_texts_find_the_best_ones_of_all(short):
    """Where the most likely text is not what greedy search hears."""
    beaten = 0
    for seed in range(16):
        model, encoded = talkative(seed), heard(3)
        wanted = enumerated(model, encoded[0], most=2)
        best = max(wanted, key=wanted.__getitem__)
        search = Beam(model, 1, width=16)
        search.accept(encoded, torch.tensor([3]))
        assert search.spelled == [list(best)]
        greedy = transducer.Greedy(model, 1)
        greedy.accept(encoded, torch.tensor([3]))
        beaten += greedy.spelled != search.spelled
    assert beaten >= 3


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_state_is_carried_over_chunks_of_any_size_and_what_is_agreed_stays(chunk):
    lengths = (12, 5, 1, 9)
    model, encoded = talkative(3), heard(*lengths)
    whole, search = Beam(model, 4), Beam(model, 4)
    whole.accept(encoded, torch.tensor(lengths))
    agreed: list[list[int]] = [[] for _ in lengths]
    for start in range(0, 12, chunk):
        left = torch.tensor([min(max(length - start, 0), chunk) for length in lengths])
        search.accept(encoded[:, start : start + chunk], left)
        for old, new in zip(agreed, search.agreed, strict=True):
            assert new[: len(old)] == old
        for texts, prefix in zip(search.texts, search.agreed, strict=True):
            every = list(zip(*(text.spelled for text in texts), strict=False))
            same = itertools.takewhile(lambda units: len(set(units)) == 1, every)
            assert [units[0] for units in same] == prefix
        agreed = [list(prefix) for prefix in search.agreed]
    assert search.spelled == whole.spelled and any(agreed)
    for texts, others in zip(search.texts, whole.texts, strict=True):
        assert [text.spelled for text in texts] == [text.spelled for text in others]
    for texts, prefix in zip(whole.texts, agreed, strict=True):
        assert all(list(text.spelled[: len(prefix)]) == prefix for text in texts)


@pytest.mark.parametrize("width", [1, 4, 16])
def test_a_batch_is_searched_as_each_utterance_alone(width):
    lengths = (12, 5, 1, 9)
    model = talkative(2)
    together = beam.decode(model, heard(*lengths), torch.tensor(lengths), WORDS, width)
    alone = [beam.decode(model, heard(n), torch.tensor([n]), WORDS, width)[0] for n in lengths]
    assert together == alone and any(alone)


def test_no_steps_give_no_text():
    assert beam.decode(talkative(0), heard(3), torch.tensor([0]), WORDS) == [""]


def test_a_step_in_which_much_is_spelled_is_followed_to_its_end():
    """A model that is sure of six units in one step, as trained ones are where steps are long."""
    model, encoded = talkative(114), heard(1)
    with torch.no_grad():
        model.output.weight *= 20
        model.output.bias *= 20
    searches = transducer.Greedy(model, 1), Beam(model, 1, width=16)
    for search in searches:
        search.accept(encoded, torch.tensor([1]))
        assert search.spelled == [[1, 2, 1, 2, 1, 2]]
    assert searches[1].texts[0][0].score > math.log(0.5)
