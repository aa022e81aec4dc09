"""What is worked out beside the requests, for all of them: what every item sold lately, and which items are new."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.ports import FeatureReader, ListedItem, Recommender
from apps.recommend.cold_items import ColdItems, match_cold_items
from apps.recommend.filters.evaluation import ItemColumns, ItemFilters
from features.contract.timestamps import DAY, milliseconds
from features.history.arrays import History
from features.recommender.catalogue import PopularItems, item_windows, popular_items, trending_scores

logger = logging.getLogger(__name__)

DAYS_KEPT = 8
SLICE = 500
"""Items whose histories are read at once: a longer reading would hold up requests, which share the interpreter."""


@dataclass(frozen=True, slots=True)
class SalesWindows:
    """Of the catalogue at one day."""

    windows: NDArray[np.float32]
    """item_windows, shape [N, len(ITEM_WINDOWS)]."""
    popular: PopularItems


class ItemStats:
    """Of one release's catalogue. Until the first refresh it shows the release's own windows, and nothing new."""

    def __init__(self, recommender: Recommender) -> None:
        self._recommender = recommender
        catalogue = recommender.catalogue
        self.filters = ItemFilters(
            ItemColumns(catalogue.ids, catalogue.titles, catalogue.prices, catalogue.categories or ())
        )
        self.newcomers: ColdItems = match_cold_items((), catalogue, self.filters.items, known=None)
        self._history: History | None = None
        self._days: OrderedDict[int, SalesWindows] = OrderedDict()
        self._released = SalesWindows(recommender.windows, popular_items(recommender.windows))
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
        """Read the histories of all items anew; on failure the board goes on with what it has.

        now: ms, the day that requests will ask about; new_items: what was listed after a moment (ms); pause: called
        between slices with the seconds that leave 95 % of the time to the requests.
        """
        catalogue = self._recommender.catalogue
        slices = []
        try:
            for start in range(0, max(1, len(catalogue.ids)), SLICE):
                began = time.perf_counter()
                slices.append(reader.item_histories(catalogue.ids[start : start + SLICE]))
                pause(19 * (time.perf_counter() - began))
        except Exception:
            self.stale = True
            logger.exception("item histories cannot be read; trending and item windows go stale")
            return
        read = _joined(slices)
        today = _sales(read, now)
        with self._lock:
            self._history = read
            self._days.clear()
            self._days[now // DAY] = today
            self.stale = False
        try:
            listed = new_items(milliseconds(self._recommender.manifest.data_end))
            self.newcomers = match_cold_items(listed, catalogue, self.filters.items, known=self.newcomers)
        except Exception:
            logger.exception("new items cannot be read; the list of them stays as it is")

    def windows_at(self, at: int) -> SalesWindows:
        """As they stood at the beginning of the day of `at` (ms)."""
        day = at // DAY
        known = self._days.get(day)
        if known is not None:
            return known
        history = self._history
        if history is None:
            return self._released
        made = _sales(history, at)
        with self._lock:
            if history is self._history:
                self._days[day] = made
                if len(self._days) > DAYS_KEPT:
                    self._days.popitem(last=False)
        return made

    def trending(self, at: int) -> NDArray[np.float64]:
        """Score of each item, today included, float64 [N]."""
        history = self._history
        if history is None:
            return self._recommender.windows[:, 1].astype(np.float64)
        return trending_scores(history, at)


def _joined(slices: Sequence[History]) -> History:
    """One history of all rows, in their order."""
    starts = np.cumsum([0, *(part.offsets[-1] for part in slices)])
    offsets = [part.offsets[:-1] + start for part, start in zip(slices, starts[:-1], strict=True)]
    entries = {name: np.concatenate([part.entries[name] for part in slices]) for name in slices[0].entries}
    return History(np.concatenate((*offsets, starts[-1:])).astype(np.int64), entries)


def _sales(history: History, at: int) -> SalesWindows:
    windows = item_windows(history, at)
    return SalesWindows(windows, popular_items(windows))
