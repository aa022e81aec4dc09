"""Re-orders ranked items for variety, in a loop that Numba compiles."""

import numpy as np
from numba import float32, float64, int64
from numpy.typing import NDArray

from features.recommender.compiled import array, compiled


@compiled(any_order=True)
def _dot(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """As in candidate_kernels.py; compiled from there it would go stale."""
    total = np.float32(0)
    for axis in range(len(left)):
        total += left[axis] * right[axis]
    return total  # type: ignore[return-value]


@compiled(array(float32, 2), float64, int64)
def mmr_order(vectors: NDArray[np.float32], weight: float, most: int) -> NDArray[np.int64]:
    """Orders the rows of `vectors` (best first, unit length) by maximal marginal relevance.

    The first `most` are chosen one by one, by (1 - weight) x relevance - weight x the highest cosine to a chosen row;
    relevance falls evenly with the row, from 1. The others keep their order. (J. Carbonell and J. Goldstein: The Use of
    MMR, Diversity-Based Reranking, SIGIR 1998.)
    """
    pool = len(vectors)
    value, worst = np.empty(pool), np.zeros(pool)
    for row in range(pool):
        value[row] = (1 - weight) * (1 - row / pool)
    chosen, size = np.empty(pool, dtype=np.int64), min(most, pool)
    for turn in range(size):
        best = -1
        for row in range(pool):
            if value[row] > -np.inf and (best < 0 or value[row] - worst[row] > value[best] - worst[best]):
                best = row
        chosen[turn], value[best] = best, -np.inf
        for row in range(pool):
            if value[row] > -np.inf:
                worst[row] = max(worst[row], weight * _dot(vectors[row], vectors[best]))
    for row in range(pool):
        if value[row] > -np.inf:
            chosen[size] = row
            size += 1
    return chosen
