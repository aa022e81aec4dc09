"""The models that need no training: popularity, and ItemKNN whose memory of a user fades."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from training.benchmark.interactions import Sequences


@dataclass(frozen=True)
class PopularityConfig:
    days: int = 0
    """Only the last so many days of the training part; 0 is all of it."""


@dataclass(frozen=True)
class ItemKnnConfig:
    """Cosine of co-counts over the last items, each weighted by decay ** (places from the end)."""

    recent: int = 10
    decay: float = 0.8
    shrink: float = 0.0
    """Added to the cosine's norm: items that few took count less."""
    ahead: int = 0
    """Above 0 the counts are directed: how often an item came up to so many places after another, over the distance."""
    own: float = 0.0
    """Weight of an item's likeness to itself: above 0 it recommends buying again, where history is not masked."""


class Popularity:
    """How many took each item; the same list for everybody."""

    def __init__(self, learn: Sequences, items: int, config: PopularityConfig) -> None:
        if config.days and len(learn.times):
            span = np.timedelta64(config.days, "D") // np.timedelta64(1, "ms")
            learn = learn.keep(learn.times > learn.times.max() - span)
        self._counts = np.bincount(learn.items, minlength=items).astype(np.float32)

    def scores(self, inputs: Sequences) -> NDArray[np.float32]:
        """float32 [inputs, items]; an item of nobody is never listed."""
        return np.tile(np.where(self._counts > 0, self._counts, -np.inf), (len(inputs), 1)).astype(np.float32)


def _followed(learn: Sequences, items: int, ahead: int) -> sp.csr_matrix:
    """Sum of 1 / distance over the places where the column's item came after the row's, shape [items, items]."""
    row, total = learn.row_of_entry, sp.csr_matrix((items, items), dtype=np.float32)
    for distance in range(1, ahead + 1):
        together = row[distance:] == row[:-distance]
        pairs = (learn.items[:-distance][together], learn.items[distance:][together])
        counts = sp.csr_matrix((np.ones(len(pairs[0]), dtype=np.float32), pairs), shape=(items, items))
        total = total + counts / distance
    return total


class ItemKnn:
    """Sum of the likeness of an item to the user's last ones (Sarwar et al., WWW 2001; decay as in sequence kNN)."""

    def __init__(self, learn: Sequences, items: int, config: ItemKnnConfig) -> None:
        self._config, self._items = config, items
        ones = np.ones(len(learn.items), dtype=np.float32)
        takers = sp.csr_matrix((ones, learn.items, learn.offsets), shape=(len(learn), items))
        takers.sum_duplicates()
        takers.data[:] = 1.0
        count = np.asarray(takers.sum(axis=0)).ravel()
        likeness = (_followed(learn, items, config.ahead) if config.ahead else takers.T @ takers).tocoo()
        norm = np.sqrt(count[likeness.row] * count[likeness.col]) + config.shrink
        value = likeness.data / norm
        value[likeness.row == likeness.col] *= config.own
        self.likeness = sp.csr_matrix((value, (likeness.row, likeness.col)), shape=(items, items), dtype=np.float32)
        self.likeness.eliminate_zeros()

    def weights(self, inputs: Sequences) -> sp.csr_matrix:
        """How much each input's items count, shape [inputs, items]."""
        recent = inputs.tail(self._config.recent)
        decay = (self._config.decay ** recent.from_end()).astype(np.float32)
        return sp.csr_matrix((decay, recent.items, recent.offsets), shape=(len(inputs), self._items))

    def scores(self, inputs: Sequences) -> NDArray[np.float32]:
        """float32 [inputs, items]; an item that no recent one is like is never listed."""
        found = (self.weights(inputs) @ self.likeness).toarray()
        return np.where(found > 0, found, -np.inf).astype(np.float32)
