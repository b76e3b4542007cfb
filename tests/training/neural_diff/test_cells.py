"""What there is to train, and in which order."""

import pytest

from fedspeech.config import NeuralDiffConfig
from fedspeech.training.neural_diff.cells import Cell, plan


@pytest.fixture
def cells() -> list[Cell]:
    settings = NeuralDiffConfig.model_validate(
        {"seeds": [3, 5], "ratios": [20.0, 40.5], "recognition": {}}
    )
    return plan(settings, 4)


def test_every_model_of_every_generation_is_there_once(cells):
    assert len(cells) == len(set(cells)) == len({cell.name for cell in cells})
    # F_0; then diff and BLC by two methods at two ratios, BL and BL∞, in three generations.
    assert len(cells) == 2 * (1 + 3 * (2 * 2 * 2 + 2))
    assert {(c.model, c.generation) for c in cells if c.generation == 0} == {("BL", 0)}


def test_no_cell_comes_before_its_base(cells):
    for place, cell in enumerate(cells):
        assert cell.base is None or cell.base in cells[:place]


def test_generations_are_a_chain_from_f_0():
    last = Cell(5, 3, "diff", "hash", 40.5)
    chain = [last]
    while (base := chain[-1].base) is not None:
        chain.append(base)
    assert [cell.generation for cell in chain] == [3, 2, 1, 0]
    assert chain[-1] == Cell(5, 0, "BL")
    assert Cell(5, 3, "BL∞").base == Cell(5, 0, "BL")
    assert Cell(5, 3, "BLC", "sparse", 20.0).base is None is Cell(5, 3, "BL").base


def test_names_are_those_of_files():
    assert Cell(5, 3, "diff", "hash", 40.5).name == "seed-5.generation-3.diff-hash-40.5x"
    assert all(c.isascii() for c in Cell(0, 1, "BL∞").name)
