"""The items that a release knows, as arrays addressed by item index: the form in which ranking reads them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features import columns, windows
from features.history import History
from features.windows import DAY

ITEM_WINDOWS = (
    "item_orders_1d",
    "item_orders_7d",
    "item_orders_30d",
    "item_units_30d",
    "item_revenue_30d",
    "item_returns_30d",
    "item_trend",
)
"""Columns of `item_windows`. Orders etc. are counts; item_trend is this week's share of the month, 1 when steady."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """N items; an item's index is its place in every array."""

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    prices: NDArray[np.float32]
    """Shape [N], the shop's currency; 0 where not known."""
    neighbours: NDArray[np.int32]
    """Shape [N, K]: items often bought in the same order, most similar first; -1 fills up."""
    similarities: NDArray[np.float32]
    """Shape [N, K], 0 to 1; 0 fills up."""
    vectors: NDArray[np.float32]
    """Shape [N, D], unit length: the item tower's answer."""
    index: dict[str, int]
    categories: tuple[str, ...] = ()
    """Empty where no item has one."""

    def indices(self, ids: NDArray[np.object_] | list[str]) -> NDArray[np.int64]:
        """Index of each id, -1 for one that the release does not know."""
        return np.fromiter((self.index.get(name, -1) for name in ids), dtype=np.int64, count=len(ids))


def item_windows(items: History, at: int) -> NDArray[np.float32]:
    """What sold in the whole days before the day of `at` (ms), shape [rows, len(ITEM_WINDOWS)].

    items: rows of history.ITEM_COLUMNS. Today does not count, for training cannot know how it ends.
    """
    moments = np.full(len(items), at - at % DAY - 1, dtype=np.int64)
    day = windows.inside(items, moments, DAY)
    week = windows.inside(items, moments, 7 * DAY)
    month = windows.inside(items, moments, 30 * DAY)
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


def trending_now(items: History, at: int) -> NDArray[np.float64]:
    """Orders of today and the six days before, younger days weighing more; shape [rows]."""
    age = (at - at % DAY - np.minimum(items.times, at)) / DAY
    return windows.row_sums(items, items.entries[columns.ORDERS] * np.where(age < 7, 0.7**age, 0.0))
