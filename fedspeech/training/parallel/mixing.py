"""Mixing matrices: how learners average their models, and how fast that makes them agree.

Row i of a matrix says with which weights learner i averages all learners' models. The matrices here
are symmetric and doubly stochastic: rows and columns sum to one. So an averaging leaves the mean of
the models as it is (Cui et al. 2020, on decentralized SGD; Lian et al. 2017).
"""

from collections.abc import Sequence

import numpy as np

Matrix = np.ndarray
"""Shape (learners, learners), float64."""


def everybody(learners: int) -> Matrix:
    """Everybody averages with everybody, 1/n each: what allreduce does."""
    return np.full((learners, learners), 1 / learners)


def ring(learners: int) -> Matrix:
    """Everybody averages with both neighbours on a ring, a third each.

    Of two learners each is the other's only neighbour, and they average by halves; one is alone.
    """
    if learners < 3:
        return everybody(learners)
    alone = np.eye(learners)
    matrix: Matrix = (alone + np.roll(alone, 1, axis=1) + np.roll(alone, -1, axis=1)) / 3
    return matrix


def pair(learners: int, one: int, other: int) -> Matrix:
    """Two of the learners take the mean of their models, and the rest keep theirs: AD-PSGD."""
    matrix = np.eye(learners)
    both = np.ix_((one, other), (one, other))
    matrix[both] = 0.5 if one != other else 1.0
    return matrix


def pairs(learners: int, anyone: bool) -> Matrix:
    """The mean over the averagings of two that AD-PSGD may do next.

    Who asks has an even place, one as likely as another, and whom it asks an odd one: beside it on
    the ring unless `anyone` will do, each of these as likely. At an end of a ring of odd length
    there is only one.
    """
    found = []
    for even in range(0, learners, 2):
        odd = range(1, learners, 2)
        met = [other for other in odd if anyone or (even - other) % learners in (1, learners - 1)]
        found += [np.mean([pair(learners, even, other) for other in met], axis=0)] if met else []
    return np.mean(found, axis=0) if found else np.eye(learners)


def hierarchical(between: Matrix, size: int) -> Matrix:
    """The mean within nodes of `size` learners each, and `between` among the nodes' means.

    Learners of a node have neighbouring numbers. Shape (nodes * size, nodes * size).
    """
    matrix: Matrix = np.kron(between, everybody(size))
    return matrix


def second_eigenvalue(matrix: Matrix) -> float:
    """The second largest magnitude among the eigenvalues of a symmetric mixing matrix, 0 … 1.

    One averaging brings the models' Euclidean distance from their mean to this share of what it
    was, or to less: 0 is agreement at once, and 1 is none. One minus it is the spectral gap, by
    which Cui et al. 2020 compare topologies. Of one learner it is 0.
    """
    if not np.allclose(matrix, matrix.T):
        raise ValueError("the matrix is not symmetric")
    magnitudes = np.sort(np.abs(np.linalg.eigvalsh(matrix)))
    return float(magnitudes[-2]) if len(magnitudes) > 1 else 0.0


def consensus_distance(models: Sequence[np.ndarray]) -> float:
    """The root mean square, over learners, of the Euclidean distance from the mean of the models.

    Of each learner there is a vector (parameters,) of any float dtype; it is taken in float64.
    """
    mean = np.zeros(len(models[0]))
    for each in models:
        mean += each
    mean /= len(models)
    squares = [np.square(mean - each).sum() for each in models]
    return float(np.sqrt(np.mean(squares)))
