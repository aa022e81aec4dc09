"""Metrics of ranked lists: NDCG, recall and hit rate at k, each defined once for training, gate and benchmark.

Knows only which positions of a list are hits, not where items or lists come from. Needs NumPy alone.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def ndcg(hits: NDArray[Any], relevant: NDArray[np.int64], *, k: int) -> NDArray[np.float64]:
    """Returns the normalised discounted cumulative gain at k of each list, float64 [lists], 0 to 1.

    hits: [lists, positions], 1 or True where the item at that position, best first, is relevant. relevant: int64
    [lists], how many items are relevant; 0 gives 0. Gains are binary, position p (from 1) is discounted by
    1 / log2(p + 1), and the norm is the sum of the first min(k, relevant) discounts, which the best possible list has
    (Jaervelin and Kekaelaeinen, Cumulated gain-based evaluation of IR techniques, ACM TOIS 2002).

    >>> ndcg(np.array([[0, 1, 0], [1, 0, 0]]), np.array([1, 1]), k=3).round(4).tolist()
    [0.6309, 1.0]
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discounts)[np.clip(relevant, 1, k) - 1]
    top = hits[:, :k]
    gains: NDArray[np.float64] = top @ discounts[: top.shape[1]] / ideal
    return gains


def recall(hits: NDArray[Any], relevant: NDArray[np.int64], *, k: int) -> NDArray[np.float64]:
    """Returns the share of min(k, relevant) items among the first k positions, float64 [lists]; arguments as `ndcg`."""
    shares: NDArray[np.float64] = np.divide(hits[:, :k].sum(axis=1), np.clip(relevant, 1, k))
    return shares


def hit_rate(hits: NDArray[Any], *, k: int) -> NDArray[np.float64]:
    """Returns 1 for each list with a hit among its first k positions, else 0; float64 [lists]."""
    any_hit: NDArray[np.float64] = np.minimum(hits[:, :k].sum(axis=1), 1.0)
    return any_hit
