"""What every item sold lately, kept in memory and renewed beside the requests: the item half of the features."""

import logging
import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from apps.ports import FeatureReader, Recommender
from features.catalogue import item_windows, trending_now
from features.history import History
from features.windows import DAY

logger = logging.getLogger(__name__)

DAYS_KEPT = 8


class ItemBoard:
    """Item histories of one release's catalogue. Until the first refresh it shows the release's own windows."""

    def __init__(self, recommender: Recommender) -> None:
        self._recommender = recommender
        self._history: History | None = None
        self._windows: OrderedDict[int, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()
        self.stale = True

    def refresh(self, reader: FeatureReader) -> None:
        """Read the histories of all items anew; on failure the board goes on with what it has."""
        try:
            read = reader.item_histories(self._recommender.catalogue.ids)
        except Exception:
            self.stale = True
            logger.exception("item histories cannot be read; trending and item windows go stale")
            return
        with self._lock:
            self._history = read
            self._windows.clear()
            self.stale = False

    def windows(self, at: int) -> NDArray[np.float32]:
        """item_windows of the catalogue at `at` (ms), float32 [N, len(ITEM_WINDOWS)]."""
        with self._lock:
            if self._history is None:
                return self._recommender.windows
            day = at // DAY
            if day not in self._windows:
                self._windows[day] = item_windows(self._history, at)
                if len(self._windows) > DAYS_KEPT:
                    self._windows.popitem(last=False)
            return self._windows[day]

    def trending(self, at: int) -> NDArray[np.float64]:
        """Score of each item, today included, float64 [N]."""
        with self._lock:
            if self._history is None:
                return self._recommender.windows[:, 1].astype(np.float64)
            return trending_now(self._history, at)
