"""From scores of all items to ranked lists, by the protocol's rule of masking."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.benchmark.interactions import Sequences

DEPTH = 100
"""Length of the lists that models hand in."""
NOBODY = -1
"""Fills a list that has fewer items than DEPTH."""
SCORED_AT_ONCE = 1024


class Scorer(Protocol):
    def scores(self, inputs: Sequences) -> NDArray[np.float32]:
        """float32 [inputs, items], the caller's to write in: higher is better, -inf never listed."""
        ...


ScoresOf = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Rows of the inputs (int64 [R]) to float32 [R, items], the caller's to write in: as `Scorer.scores`."""


def lists_of(
    scores_of: ScoresOf, inputs: Sequences, *, mask_history: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lists (int64 [inputs, DEPTH]) by the rule of masking, and with history masked in any case; rows in chunks."""
    plain, new = [], []
    for rows in np.array_split(np.arange(len(inputs)), max(1, -(-len(inputs) // SCORED_AT_ONCE))):
        scores = scores_of(rows)
        if not mask_history:
            plain.append(top_lists(scores))
        mask(scores, inputs.rows(rows))
        new.append(top_lists(scores))
    masked = np.concatenate(new)
    return (masked if mask_history else np.concatenate(plain)), masked


def top_lists(scores: NDArray[np.float32], depth: int = DEPTH) -> NDArray[np.int64]:
    """The best items of each row of scores [cases, items], best first, ties by number; -inf is never listed."""
    depth = min(depth, scores.shape[1])
    best = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
    best.sort(axis=1)
    values = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    lists = np.take_along_axis(best, order, axis=1).astype(np.int64)
    lists[np.isneginf(np.take_along_axis(values, order, axis=1))] = NOBODY
    return lists


def mask(scores: NDArray[np.float32], taken: Sequences) -> None:
    """Put -inf at what each row's user took before, in place."""
    scores[taken.row_of_entry, taken.items] = -np.inf
