"""Computes in the background what all requests need: what every item sold lately, and which items are cold.

Knows nothing of visitors or requests.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.lru_map import LruMap
from apps.ports import FeatureReader, ListedItem, Recommender
from apps.recommend.cold_items import ColdItems, match_cold_items
from apps.recommend.filters.evaluation import ItemColumns, ItemFilters
from features.contract.timestamps import DAY, milliseconds
from features.history.arrays import History
from features.recommender.catalogue import PopularItems, item_windows, popular_items, trending_scores

logger = logging.getLogger(__name__)

DAYS_KEPT = 8
"""Days of request times whose windows are kept; replays and backtests ask about days in the past."""
SLICE = 500
"""Items whose histories are read at once: a longer read would delay requests, which share the interpreter."""


@dataclass(frozen=True, slots=True)
class SalesWindows:
    """What the catalogue's items sold before one day."""

    windows: NDArray[np.float32]
    """item_windows, shape [N, len(ITEM_WINDOWS)]."""
    popular: PopularItems


class ItemStats:
    """Holds sales and cold items beside one release's catalogue.

    Until the first refresh the sales are those of the release, and there are no cold items. Safe to use from threads.
    """

    def __init__(self, recommender: Recommender) -> None:
        self._recommender = recommender
        catalogue = recommender.catalogue
        self.filters = ItemFilters(
            ItemColumns(catalogue.ids, catalogue.titles, catalogue.prices, catalogue.categories or ())
        )
        self.cold_items: ColdItems = match_cold_items((), catalogue, self.filters.items, previous=None)
        self._history: History | None = None
        self._by_day: LruMap[int, SalesWindows] = LruMap(DAYS_KEPT)
        self._of_release = SalesWindows(recommender.windows, popular_items(recommender.windows))
        self._lock = threading.Lock()
        self.stale = True

    def refresh(
        self,
        reader: FeatureReader,
        *,
        now: int,
        new_items: Callable[[int], list[ListedItem]] = lambda moment: [],
        pause: Callable[[float], object] = lambda seconds: None,
    ) -> None:
        """Reads the histories of all items again. On failure what was read before stays, and `stale` says so.

        now: ms, of the day that requests will ask about; new_items: returns what was listed after a moment (ms); pause:
        called between slices with the seconds that leave 95 % of the time to the requests.
        """
        catalogue = self._recommender.catalogue
        slices = []
        try:
            for start in range(0, max(1, len(catalogue.ids)), SLICE):
                started = time.perf_counter()
                slices.append(reader.item_histories(catalogue.ids[start : start + SLICE]))
                pause(19 * (time.perf_counter() - started))
        except Exception:
            self.stale = True
            logger.exception("item histories cannot be read; trending and item windows go stale")
            return
        history = _joined(slices)
        today = _sales(history, now)
        with self._lock:
            self._history = history
            self._by_day.clear()
            self._by_day.put(now // DAY, today)
            self.stale = False
        try:
            listed = new_items(milliseconds(self._recommender.manifest.data_end))
            self.cold_items = match_cold_items(listed, catalogue, self.filters.items, previous=self.cold_items)
        except Exception:
            logger.exception("new items cannot be read; the list of them stays as it is")

    def windows_at(self, at: int) -> SalesWindows:
        """Returns the windows as they were at the beginning of the day of `at` (ms)."""
        day = at // DAY
        sales = self._by_day.get(day)
        if sales is not None:
            return sales
        history = self._history
        if history is None:
            return self._of_release
        sales = _sales(history, at)
        with self._lock:
            if history is self._history:
                self._by_day.put(day, sales)
        return sales

    def trending(self, at: int) -> NDArray[np.float64]:
        """Returns the trending score of each item, today included, float64 [N]."""
        history = self._history
        if history is None:
            return self._recommender.windows[:, 1].astype(np.float64)
        return trending_scores(history, at)


def _joined(slices: Sequence[History]) -> History:
    """Joins histories into one with all their rows, in order."""
    starts = np.cumsum([0, *(part.offsets[-1] for part in slices)])
    offsets = [part.offsets[:-1] + start for part, start in zip(slices, starts[:-1], strict=True)]
    entries = {name: np.concatenate([part.entries[name] for part in slices]) for name in slices[0].entries}
    return History(np.concatenate((*offsets, starts[-1:])).astype(np.int64), entries)


def _sales(history: History, at: int) -> SalesWindows:
    windows = item_windows(history, at)
    return SalesWindows(windows, popular_items(windows))
