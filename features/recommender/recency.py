"""What a visitor did last, and how much of it still counts. Compiled, as candidate_kernels.py is."""

import numpy as np
from numba import int64
from numpy.typing import NDArray

from features.recommender.compiled import FLOAT32S, INT64S, compiled

VISIT_GAP_MS = 1_800_000
"""Most ms from one event of a visit to the next."""


@compiled(INT64S, INT64S, INT64S, int64, int64)
def latest_items(
    items: NDArray[np.int64], kinds: NDArray[np.int64], times: NDArray[np.int64], returned: int, most: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `most` latest entries of known items that were not returned, oldest first: their items and weights, 1 in the
    last visit, halved for each visit before it."""
    places = np.empty(most, dtype=np.int64)
    first = most
    for place in range(len(items) - 1, -1, -1):
        if first > 0 and items[place] >= 0 and kinds[place] != returned:
            first -= 1
            places[first] = place
    weights = np.empty(most - first, dtype=np.float32)
    weight = np.float32(1)
    for place in range(most - 1, first - 1, -1):
        if place < most - 1 and times[places[place + 1]] - times[places[place]] > VISIT_GAP_MS:
            weight *= np.float32(0.5)
        weights[place - first] = weight
    return items[places[first:]], weights


@compiled(INT64S, FLOAT32S, int64)
def pad_row(
    items: NDArray[np.int64], weights: NDArray[np.float32], width: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Items and weights as rows of `width`, filled up with zeros; the weights summing to 1, or 0 without items."""
    row, shares = np.zeros(width, dtype=np.int64), np.zeros(width, dtype=np.float32)
    total = np.float32(0)
    for weight in weights:
        total += weight
    for place in range(len(items)):
        row[place], shares[place] = items[place], weights[place] / total
    return row, shares
