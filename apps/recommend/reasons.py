"""Why an item is shown, from the features that it was ranked by. Codes are stable; texts are for people."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.recommender.candidates import FEATURE_INDEX, SOURCES, UNRANKED, Candidates
from features.recommender.catalogue import Catalogue

MAX_REASONS = 2
NEW = "new"
"""Source of items that the release does not know."""
PINNED = {"code": "PINNED", "text": "Placed here by the shop", "item_id": None}
EXPLORED = {"code": "EXPLORED", "text": "Shown to learn how it does", "item_id": None}
CLOSE_TO_RECENT = {"code": "CLOSE_TO_RECENT", "text": "Close to what this visitor lately took", "item_id": None}
NEW_ITEM = {"code": "NEW_ITEM", "text": "New in the shop", "item_id": None}


def first_sources(ranks: NDArray[np.int64]) -> list[str]:
    """The source that ranked each candidate highest; ranks: shape [C, len(SOURCES)]."""
    best = ranks.argmin(axis=1)
    known = ranks[np.arange(len(ranks)), best] < UNRANKED
    return [SOURCES[place] if one else NEW for place, one in zip(best.tolist(), known.tolist(), strict=True)]


class Reasons:
    """Of some rows of the candidates, by their place among these rows."""

    def __init__(self, candidates: Candidates, rows: NDArray[np.int64], catalogue: Catalogue) -> None:
        self._candidates, self._catalogue, self._rows = candidates, catalogue, rows.tolist()
        ranks = candidates.ranks[rows]
        self._ranks, self._best = ranks.tolist(), ranks.argsort(axis=1, kind="stable").tolist()
        self.sources = first_sources(ranks)
        """The source that ranked each highest."""

    def ranks(self, row: int) -> list[tuple[str, int]]:
        """(source, place in it from 0 on), the source that ranked it highest first."""
        return [(SOURCES[one], self._ranks[row][one]) for one in self._drew(row)] or [(NEW, 0)]

    def for_row(self, row: int, *, pinned: bool, explored: bool) -> list[dict[str, Any]]:
        """At most MAX_REASONS."""
        if pinned:
            return [PINNED]
        drew = self._drew(row)[: MAX_REASONS - explored]
        reasons = [self._of_source(SOURCES[one], row) for one in drew] or [NEW_ITEM]
        return [EXPLORED, *reasons] if explored else reasons

    def _drew(self, row: int) -> list[int]:
        """The sources that drew it, by their place among SOURCES, the one that ranked it highest first."""
        ranks = self._ranks[row]
        return [one for one in self._best[row] if ranks[one] < UNRANKED]

    def _of_source(self, source: str, row: int) -> dict[str, Any]:
        if source == "co_purchase":
            because = self._candidates.seed_items[self._rows[row]]
            item_id = self._catalogue.ids[because]
            title = self._catalogue.titles[because] or item_id
            return {"code": "BOUGHT_TOGETHER", "text": f"Often bought together with {title}", "item_id": item_id}
        if source == "two_tower":
            return CLOSE_TO_RECENT
        if source == "repurchase":
            times, idle = self._told(row, "own_orders"), self._told(row, "own_idle_days")
            often = "once" if times == 1 else f"{times} times"
            text = f"Bought {often} before, last {idle} days ago"
            return {"code": "BOUGHT_BEFORE", "text": text, "item_id": None}
        text = f"In {self._told(row, 'item_orders_7d')} orders of the last 7 days"
        return {"code": "TRENDING", "text": text, "item_id": None}

    def _told(self, row: int, feature: str) -> int:
        return int(self._candidates.features[self._rows[row], FEATURE_INDEX[feature]])
