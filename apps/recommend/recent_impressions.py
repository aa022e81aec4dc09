"""What each visitor was shown lately, for rotation: known to this process alone, and gone when it ends.

Cheap on purpose: with several API processes each knows its own answers, so a visitor's items rotate the slower the more
processes there are. Nothing that must be exact hangs on it; what was shown stands in the event log.
"""

import threading
from collections import OrderedDict, deque

import numpy as np
from numpy.typing import NDArray

MAX_VISITORS = 20_000
MAX_LISTS = 10
"""Latest lists of a visitor and surface that are remembered."""


class RecentImpressions:
    """Safe to use from threads. Times in ms."""

    def __init__(self, *, visitors: int = MAX_VISITORS) -> None:
        self._visitors = visitors
        self._lists: OrderedDict[tuple[str | None, str], deque[tuple[int, NDArray[np.int64]]]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, visitor: str, surface: str, items: NDArray[np.int64], at: int) -> None:
        with self._lock:
            lists = self._lists.setdefault((visitor, surface), deque(maxlen=MAX_LISTS))
            lists.append((at, items))
            self._lists.move_to_end((visitor, surface))
            if len(self._lists) > self._visitors:
                self._lists.popitem(last=False)

    def items(self, visitor: str | None, surface: str, *, since: int) -> NDArray[np.int64]:
        """What was shown from `since` on, each item as often as it was shown; a stranger (None) was shown nothing."""
        with self._lock:
            lists = [items for at, items in self._lists.get((visitor, surface), ()) if at >= since]
        return np.concatenate([np.empty(0, dtype=np.int64), *lists])

    def clear(self) -> None:
        """Forget everything: another release numbers its items anew."""
        with self._lock:
            self._lists.clear()
