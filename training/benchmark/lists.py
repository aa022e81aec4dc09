"""Turns scores of all items into ranked lists, with or without the items of the user's history."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.benchmark.interactions import Sequences

DEPTH = 100
"""Length of the lists that models return."""
NO_ITEM = -1
"""Fills a list that has fewer items than DEPTH."""
ROWS_PER_CHUNK = 1024


class Scorer(Protocol):
    """Scores all items for users."""

    def scores(self, inputs: Sequences) -> NDArray[np.float32]:
        """Returns float32 [inputs, items], which the caller may overwrite: higher is better, -inf is never listed."""
        ...


RowScorer = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Maps rows of the inputs (int64 [R]) to scores float32 [R, items], as `Scorer.scores`."""


def ranked_lists(
    score_rows: RowScorer, inputs: Sequences, *, mask_history: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns two arrays of lists, int64 [inputs, DEPTH]: masked where `mask_history` says so, and masked in any case.

    Rows are scored in chunks.
    """
    unmasked_lists, masked_lists = [], []
    for rows in np.array_split(np.arange(len(inputs)), max(1, -(-len(inputs) // ROWS_PER_CHUNK))):
        scores = score_rows(rows)
        if not mask_history:
            unmasked_lists.append(top_lists(scores))
        mask(scores, inputs.rows(rows))
        masked_lists.append(top_lists(scores))
    masked = np.concatenate(masked_lists)
    return (masked if mask_history else np.concatenate(unmasked_lists)), masked


def top_lists(scores: NDArray[np.float32], depth: int = DEPTH) -> NDArray[np.int64]:
    """Returns the best items of each row of scores [cases, items], best first, ties by number; -inf is never listed."""
    depth = min(depth, scores.shape[1])
    best = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
    best.sort(axis=1)
    values = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    lists = np.take_along_axis(best, order, axis=1).astype(np.int64)
    lists[np.isneginf(np.take_along_axis(values, order, axis=1))] = NO_ITEM
    return lists


def mask(scores: NDArray[np.float32], taken: Sequences) -> None:
    """Sets the scores of the items that each row's user took before to -inf, in place."""
    scores[taken.row_of_entry, taken.items] = -np.inf
