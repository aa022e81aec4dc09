"""Holds the items of a release as arrays by item index, as ranking reads them, and computes their windows."""

from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from features.contract import columns
from features.contract.timestamps import DAY
from features.history import windows
from features.history.arrays import History
from features.recommender.candidate_kernels import ITEM_WINDOWS as ITEM_WINDOWS
from features.recommender.candidate_kernels import are_allowed


@dataclass(frozen=True, slots=True)
class Catalogue:
    """N items; an item's index is its position in every array."""

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    prices: NDArray[np.float32]
    """Shape [N], the shop's currency; 0 where not known."""
    neighbours: NDArray[np.int32]
    """Shape [N, K]: items often bought in the same order, most similar first; -1 fills up."""
    similarities: NDArray[np.float32]
    """Shape [N, K], 0 to 1; 0 fills up."""
    vectors: NDArray[np.float32]
    """Shape [N, D], unit length: the output of the item tower."""
    index: dict[str, int]
    categories: tuple[str, ...] = ()
    """Empty where no item has one."""

    def indices(self, ids: NDArray[np.object_] | list[str]) -> NDArray[np.int64]:
        """Returns the index of each id, -1 for an id that the release does not know."""
        return np.fromiter(map(self.index.get, ids, repeat(-1)), np.int64, len(ids))


MAX_LISTED_MEMBERS, MAX_LISTED_SHARE = 5_000, 1 / 16
"""Subsets of at most so many items, or of this share of all, also keep a list: comparing so few items one by one takes
no longer than searching the cells of an index."""


@dataclass(frozen=True, slots=True)
class ItemSet:
    """A subset of N items as bits: an eighth of the memory of a mask, and what Faiss takes."""

    bits: NDArray[np.uint8]
    """Item i is in the subset if bit i % 8 of byte i // 8 is set."""
    size: int
    """N."""
    count: int
    members: NDArray[np.int32] | None
    """Its items, ascending; None if there are too many to keep."""

    @staticmethod
    def from_mask(mask: NDArray[np.bool_]) -> "ItemSet":
        """Builds the subset of a mask, shape [N].

        >>> few = ItemSet.from_mask(np.array([True, False, True]))
        >>> few.count, few.contains(np.array([0, 1, 2])).tolist()
        (2, [True, False, True])
        """
        count = int(np.count_nonzero(mask))
        few = count <= max(MAX_LISTED_MEMBERS, int(len(mask) * MAX_LISTED_SHARE))
        members = np.flatnonzero(mask).astype(np.int32) if few else None
        return ItemSet(np.packbits(mask, bitorder="little"), len(mask), count, members)

    def contains(self, items: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns which of `items` are in the subset, shape [len(items)]."""
        return are_allowed(self.bits, items)

    def without(self, items: NDArray[np.int64]) -> "ItemSet":
        """Returns the subset without `items`."""
        removed = set(items[self.contains(items)].tolist())
        if not removed:
            return self
        bits = self.bits.copy()
        for item in removed:
            bits[item >> 3] &= ~(1 << (item & 7)) & 255
        members = None if self.members is None else self.members[~np.isin(self.members, list(removed))]
        return ItemSet(bits, self.size, self.count - len(removed), members)


@dataclass(frozen=True, slots=True)
class PopularItems:
    """The items that sell most, computed once for the requests of a day."""

    last_7_days: NDArray[np.int64]
    """By the orders of 7 days, highest first; only those with any."""
    last_30_days: NDArray[np.int64]
    """By the orders of 30 days."""


def popular_items(windows: NDArray[np.float32]) -> PopularItems:
    """Ranks the items of a catalogue by their orders. windows: its item_windows."""
    return PopularItems(
        _descending(windows[:, ITEM_WINDOWS.index("item_orders_7d")]),
        _descending(windows[:, ITEM_WINDOWS.index("item_orders_30d")]),
    )


def _descending(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns the items with a score above 0, the highest first; of equal scores the lower index."""
    order = np.argsort(-scores, kind="stable").astype(np.int64)
    return order[: int(np.count_nonzero(scores > 0))]


def item_windows(items: History, at: int) -> NDArray[np.float32]:
    """Sums what sold in the whole days before the day of `at` (ms), shape [rows, len(ITEM_WINDOWS)]. item_trend is
    this week's share of the month, 1 when steady; the others are counts and sums.

    items: rows of arrays.ITEM_COLUMNS. Today does not count: training cannot know its end.
    """
    moments = np.full(len(items), at - at % DAY - 1, dtype=np.int64)
    day = windows.in_window(items, moments, DAY)
    week = windows.in_window(items, moments, 7 * DAY)
    month = windows.in_window(items, moments, 30 * DAY)
    entries = items.entries
    orders_7d = windows.row_sums(items, entries[columns.ORDERS] * week)
    orders_30d = windows.row_sums(items, entries[columns.ORDERS] * month)
    return np.column_stack(
        [
            windows.row_sums(items, entries[columns.ORDERS] * day),
            orders_7d,
            orders_30d,
            windows.row_sums(items, entries[columns.UNITS] * month),
            windows.row_sums(items, entries[columns.REVENUE] * month),
            windows.row_sums(items, entries[columns.RETURNS] * month),
            (orders_7d + 1) / (orders_30d * 7 / 30 + 1),
        ]
    ).astype(np.float32)


def trending_scores(items: History, at: int) -> NDArray[np.float64]:
    """Sums the orders of today and the six days before, each day weighing 0.7 of the day after it; shape [rows]."""
    age = (at - at % DAY - np.minimum(items.times, at)) / DAY
    return windows.row_sums(items, items.entries[columns.ORDERS] * np.where(age < 7, 0.7**age, 0.0))
