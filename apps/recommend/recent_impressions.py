"""Remembers what each visitor was shown lately, for the rule that rotates items.

The memory is of this process alone and ends with it, which keeps it cheap: with several API processes each knows its
own answers, so a visitor's items rotate the slower the more processes there are. Nothing that must be exact depends on
it; the event log holds every impression.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apps.lru_map import LruMap

MAX_VISITORS = 20_000
"""Visitors, counted once for each surface, whose slates are remembered."""
MAX_SLATES = 10
"""Latest slates of a visitor on a surface that are remembered."""


class ShownSlate(NamedTuple):
    at: int
    """When it was shown, ms."""
    items: NDArray[np.int64]
    """Its items as indices of the release that answered."""


class RecentImpressions:
    """Holds the latest slates by release, visitor and surface. Safe to use from threads; of two slates that one visitor
    is shown at the same moment it may forget one."""

    def __init__(self) -> None:
        self._slates: LruMap[tuple[str, str, str], tuple[ShownSlate, ...]] = LruMap(MAX_VISITORS)

    def add(self, release: str, visitor: str, surface: str, slate: ShownSlate) -> None:
        """Remembers a slate."""
        earlier = self.of(release, visitor, surface)
        self._slates.put((release, visitor, surface), (*earlier[1 - MAX_SLATES :], slate))

    def of(self, release: str, visitor: str | None, surface: str) -> tuple[ShownSlate, ...]:
        """Returns the remembered slates, oldest first. A stranger (None) has none."""
        return () if visitor is None else self._slates.get((release, visitor, surface)) or ()
