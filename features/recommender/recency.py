"""Selects the latest items of a visitor and weights them by recency. Compiled, as candidate_kernels.py is."""

import numpy as np
from numba import int64
from numpy.typing import NDArray

from features.recommender.compiled import FLOAT32S, INT64S, compiled

VISIT_GAP_MS = 1_800_000
"""Longest gap between two events of a visit, ms."""
VISIT_DECAY = 0.5
"""What the items of a visit weigh beside those of the visit after it: the half-life is one visit."""


@compiled(INT64S, INT64S, INT64S, int64, int64)
def latest_items(
    items: NDArray[np.int64], event_types: NDArray[np.int64], times: NDArray[np.int64], returned: int, most: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the items and weights of the `most` latest entries of known items that were not returned, oldest first.
    The weight is 1 in the last visit and halves with each visit before it."""
    rows = np.empty(most, dtype=np.int64)
    first = most
    for index in range(len(items) - 1, -1, -1):
        if first > 0 and items[index] >= 0 and event_types[index] != returned:
            first -= 1
            rows[first] = index
    weights = np.empty(most - first, dtype=np.float32)
    weight = np.float32(1)
    for index in range(most - 1, first - 1, -1):
        if index < most - 1 and times[rows[index + 1]] - times[rows[index]] > VISIT_GAP_MS:
            weight *= np.float32(VISIT_DECAY)
        weights[index - first] = weight
    return items[rows[first:]], weights


@compiled(INT64S, FLOAT32S, int64)
def pad_row(
    items: NDArray[np.int64], weights: NDArray[np.float32], width: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Pads items and weights with zeros to `width`; the weights sum to 1, or to 0 without items."""
    row, shares = np.zeros(width, dtype=np.int64), np.zeros(width, dtype=np.float32)
    total = np.float32(0)
    for weight in weights:
        total += weight
    for index in range(len(items)):
        row[index], shares[index] = items[index], weights[index] / total
    return row, shares
