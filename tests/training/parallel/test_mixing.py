"""Mixing matrices, against numpy.linalg and against sums by hand."""

import numpy as np
import pytest

from fedspeech.seeding import generator
from fedspeech.training.parallel import mixing

MATRICES = {
    **{f"everybody {n}": mixing.everybody(n) for n in (1, 2, 5)},
    **{f"ring {n}": mixing.ring(n) for n in (1, 2, 3, 4, 7, 16)},
    **{f"pairs of {n}": mixing.pairs(n, anyone=n > 4) for n in (2, 3, 4, 5, 8)},
    "pair": mixing.pair(5, 1, 3),
    "pair of itself": mixing.pair(5, 2, 2),
    "hierarchical ring": mixing.hierarchical(mixing.ring(4), 2),
    "hierarchical pair": mixing.hierarchical(mixing.pair(3, 0, 2), 4),
}


@pytest.fixture(params=MATRICES)
def matrix(request):
    return MATRICES[request.param]


def models(learners: int) -> np.ndarray:
    return generator(0, 0, "", "models").normal(size=(learners, 11))


def apart(mixed: np.ndarray) -> float:
    return float(np.linalg.norm(mixed - mixed.mean(0)))


def test_rows_and_columns_sum_to_one_and_nothing_is_negative(matrix):
    assert np.allclose(matrix.sum(0), 1) and np.allclose(matrix.sum(1), 1)
    assert (matrix >= 0).all() and (matrix == matrix.T).all()
    assert matrix.dtype == np.float64


def test_the_mean_of_the_models_stays(matrix):
    before = models(len(matrix))
    assert np.allclose((matrix @ before).mean(0), before.mean(0), atol=1e-12)


def test_an_averaging_brings_models_together_by_the_second_eigenvalue_at_least(matrix):
    before = models(len(matrix))
    share = mixing.second_eigenvalue(matrix)
    assert apart(matrix @ before) <= share * apart(before) + 1e-12


@pytest.mark.parametrize(("learners", "times"), [(4, 8), (7, 30), (16, 90)])
def test_many_averagings_on_a_ring_come_together_at_that_rate(learners, times):
    matrix = mixing.ring(learners)
    before = np.linalg.matrix_power(matrix, times) @ models(learners)
    rate = apart(matrix @ before) / apart(before)
    singular = np.linalg.svd(matrix, compute_uv=False)
    assert rate == pytest.approx(singular[1], rel=1e-3)
    assert mixing.second_eigenvalue(matrix) == pytest.approx(singular[1])


@pytest.mark.parametrize("learners", [3, 5, 8])
def test_the_second_eigenvalue_of_a_ring_is_that_of_a_circulant_matrix(learners):
    values = (1 + 2 * np.cos(2 * np.pi * np.arange(1, learners) / learners)) / 3
    expected = pytest.approx(np.abs(values).max())
    assert mixing.second_eigenvalue(mixing.ring(learners)) == expected


def test_small_rings_by_hand():
    assert mixing.ring(1).tolist() == [[1]]
    assert mixing.ring(2).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert np.allclose(mixing.ring(3), 1 / 3)
    assert np.allclose(3 * mixing.ring(4)[0], [1, 1, 0, 1])
    assert np.allclose(3 * mixing.ring(5)[3], [0, 0, 1, 1, 1])


def test_the_second_eigenvalue_by_hand():
    assert mixing.second_eigenvalue(mixing.everybody(1)) == 0
    assert mixing.second_eigenvalue(mixing.everybody(4)) == pytest.approx(0, abs=1e-12)
    assert mixing.second_eigenvalue(np.eye(3)) == 1
    assert mixing.second_eigenvalue(mixing.ring(4)) == pytest.approx(1 / 3)
    # Within nodes all agree, so that only what is between nodes is left.
    assert mixing.second_eigenvalue(mixing.hierarchical(mixing.ring(4), 3)) == pytest.approx(1 / 3)


def test_a_pair_takes_its_mean_and_the_rest_keep_their_models():
    mixed = mixing.pair(3, 0, 2) @ np.array([[2.0], [5.0], [4.0]])
    assert mixed.tolist() == [[3.0], [5.0], [3.0]]


def test_nodes_take_the_mean_of_nodes():
    mixed = mixing.hierarchical(mixing.pair(3, 0, 1), 2) @ np.array([[1.0, 3, 5, 7, 0, 8]]).T
    assert mixed.T.tolist() == [[4, 4, 4, 4, 4, 4]]
    mixed = mixing.hierarchical(np.eye(2), 2) @ np.array([[1.0, 3, 5, 7]]).T
    assert mixed.T.tolist() == [[2, 2, 6, 6]]


def test_random_pairs_agree_as_fast_as_their_expectation_says():
    pairs = [mixing.pair(4, i, j) for i in range(4) for j in range(i)]
    # Averaging is a projection, so that the expected square of a distance follows from the mean.
    expected = mixing.second_eigenvalue(np.mean(pairs, axis=0))
    assert expected == pytest.approx(1 - 1 / 3)
    before = models(4)
    after = np.mean([apart(pair @ before) ** 2 for pair in pairs])
    assert after / apart(before) ** 2 == pytest.approx(expected)


def test_the_averagings_of_ad_psgd_by_hand():
    around = [mixing.pair(4, *two) for two in ((0, 1), (0, 3), (2, 1), (2, 3))]
    assert np.allclose(mixing.pairs(4, anyone=False), sum(around) / 4)
    assert np.allclose(mixing.pairs(4, anyone=True), mixing.pairs(4, anyone=False))
    # On a ring of three the ends, which both ask, do not meet.
    assert np.allclose(6 * mixing.pairs(3, anyone=False)[0], [4.5, 1.5, 0])
    # Of five each end has one partner, whom it always asks; the one in the middle has two.
    asked = {(0, 1): 2, (2, 1): 1, (2, 3): 1, (4, 3): 2}
    mean = sum(times * mixing.pair(5, *two) for two, times in asked.items()) / 6
    assert np.allclose(mixing.pairs(5, anyone=False), mean)
    # Of eight, two pairs and no more are beside each place, and four may meet it.
    assert (mixing.pairs(8, anyone=False)[0] > 0).sum() == 3
    assert (mixing.pairs(8, anyone=True)[0] > 0).sum() == 5
    assert mixing.pairs(1, anyone=True).tolist() == [[1]]


def test_the_consensus_distance_by_hand():
    assert mixing.consensus_distance(np.array([[0.0, 3.0], [8.0, 9.0]])) == pytest.approx(5)
    assert mixing.consensus_distance(np.array([[1.0, 2.0]])) == 0


def test_a_matrix_that_is_not_symmetric_is_refused():
    with pytest.raises(ValueError, match="symmetric"):
        mixing.second_eigenvalue(np.array([[0.5, 0.5], [0.0, 1.0]]))
