"""Baselines of the benchmark, which need no training: popularity, and ItemKNN that weighs recent items more."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from training.benchmark.interactions import Sequences


@dataclass(frozen=True)
class PopularityConfig:
    """Settings of Popularity."""

    days: int = 0
    """Last days of the training part that are counted; 0 counts all of it."""


@dataclass(frozen=True)
class ItemKnnConfig:
    """Settings of ItemKnn: cosine of co-counts, summed over a user's last items."""

    recent: int = 10
    """Last items of a user that are read."""
    decay: float = 0.8
    """An item counts decay ** (its distance from the user's last one)."""
    shrink: float = 0.0
    """Added to the norm of the cosine, so that items that few users took count less."""
    ahead: int = 0
    """Above 0 the counts are directed: how often an item came up to so many entries after another, by distance."""
    own: float = 0.0
    """Weight of an item's similarity to itself: above 0 it recommends re-purchase, where history is not masked."""


class Popularity:
    """Scores items by how often they were taken; all users get the same list."""

    def __init__(self, learn: Sequences, items: int, config: PopularityConfig) -> None:
        if config.days and len(learn.times):
            span = np.timedelta64(config.days, "D") // np.timedelta64(1, "ms")
            learn = learn.keep(learn.times > learn.times.max() - span)
        self._counts = np.bincount(learn.items, minlength=items).astype(np.float32)

    def scores(self, inputs: Sequences) -> NDArray[np.float32]:
        """Returns float32 [inputs, items]; -inf, never listed, for an item that nobody took."""
        return np.tile(np.where(self._counts > 0, self._counts, -np.inf), (len(inputs), 1)).astype(np.float32)


def _directed_counts(learn: Sequences, items: int, ahead: int) -> sp.csr_matrix:
    """Sums 1 / distance where the column's item came at most `ahead` entries after the row's, shape [items, items]."""
    row, total = learn.row_of_entry, sp.csr_matrix((items, items), dtype=np.float32)
    for distance in range(1, ahead + 1):
        same_row = row[distance:] == row[:-distance]
        pairs = (learn.items[:-distance][same_row], learn.items[distance:][same_row])
        counts = sp.csr_matrix((np.ones(len(pairs[0]), dtype=np.float32), pairs), shape=(items, items))
        total = total + counts / distance
    return total


class ItemKnn:
    """Scores an item by its similarity to the user's last ones (Sarwar et al., WWW 2001; decay as in sequence kNN)."""

    def __init__(self, learn: Sequences, items: int, config: ItemKnnConfig) -> None:
        self._config, self._items = config, items
        ones = np.ones(len(learn.items), dtype=np.float32)
        takers = sp.csr_matrix((ones, learn.items, learn.offsets), shape=(len(learn), items))
        takers.sum_duplicates()
        takers.data[:] = 1.0
        count = np.asarray(takers.sum(axis=0)).ravel()
        counts = (_directed_counts(learn, items, config.ahead) if config.ahead else takers.T @ takers).tocoo()
        norm = np.sqrt(count[counts.row] * count[counts.col]) + config.shrink
        value = counts.data / norm
        value[counts.row == counts.col] *= config.own
        self.similarity = sp.csr_matrix((value, (counts.row, counts.col)), shape=(items, items), dtype=np.float32)
        self.similarity.eliminate_zeros()

    def weights(self, inputs: Sequences) -> sp.csr_matrix:
        """Returns the weights of each input's last items, shape [inputs, items]."""
        recent = inputs.tail(self._config.recent)
        decay = (self._config.decay ** recent.distance_from_end()).astype(np.float32)
        return sp.csr_matrix((decay, recent.items, recent.offsets), shape=(len(inputs), self._items))

    def scores(self, inputs: Sequences) -> NDArray[np.float32]:
        """Returns float32 [inputs, items]; -inf, never listed, for an item that is similar to none of the last ones."""
        scores = (self.weights(inputs) @ self.similarity).toarray()
        return np.where(scores > 0, scores, -np.inf).astype(np.float32)
