"""Says why an item is shown, from the features that it was ranked by. Codes are stable; texts are for people."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.recommender.candidates import FEATURE_INDEX, SOURCES, UNRANKED, Candidates
from features.recommender.catalogue import Catalogue

MAX_REASONS = 2
NEW = "new"
"""Source of cold items."""
PINNED = {"code": "PINNED", "text": "Placed here by the shop", "item_id": None}
EXPLORED = {"code": "EXPLORED", "text": "Shown to learn how it does", "item_id": None}
CLOSE_TO_RECENT = {"code": "CLOSE_TO_RECENT", "text": "Close to what this visitor lately took", "item_id": None}
NEW_ITEM = {"code": "NEW_ITEM", "text": "New in the shop", "item_id": None}


def first_sources(ranks: NDArray[np.int64]) -> list[str]:
    """Returns the source that ranked each candidate highest. ranks: shape [C, len(SOURCES)]."""
    best = ranks.argmin(axis=1)
    ranked = ranks[np.arange(len(ranks)), best] < UNRANKED
    return [SOURCES[source] if known else NEW for source, known in zip(best.tolist(), ranked.tolist(), strict=True)]


class Reasons:
    """Finds sources and reasons of some rows of the candidates. Its methods take the index of a row among these."""

    def __init__(self, candidates: Candidates, rows: NDArray[np.int64], catalogue: Catalogue) -> None:
        self._candidates, self._catalogue, self._rows = candidates, catalogue, rows.tolist()
        ranks = candidates.ranks[rows]
        self._ranks, self._best = ranks.tolist(), ranks.argsort(axis=1, kind="stable").tolist()
        self.sources = first_sources(ranks)
        """The source that ranked each row highest."""

    def ranks(self, index: int) -> list[tuple[str, int]]:
        """Returns (source, rank in it from 0 on), the source that ranked the row highest first."""
        return [(SOURCES[source], self._ranks[index][source]) for source in self._sources_of(index)] or [(NEW, 0)]

    def for_row(self, index: int, *, pinned: bool, explored: bool) -> list[dict[str, Any]]:
        """Returns at most MAX_REASONS reasons."""
        if pinned:
            return [PINNED]
        sources = self._sources_of(index)[: MAX_REASONS - explored]
        reasons = [self._of_source(SOURCES[source], index) for source in sources] or [NEW_ITEM]
        return [EXPLORED, *reasons] if explored else reasons

    def _sources_of(self, index: int) -> list[int]:
        """Returns the sources that have the row, as indices of SOURCES, the one that ranked it highest first."""
        ranks = self._ranks[index]
        return [source for source in self._best[index] if ranks[source] < UNRANKED]

    def _of_source(self, source: str, index: int) -> dict[str, Any]:
        if source == "co_purchase":
            seed = self._candidates.seed_items[self._rows[index]]
            item_id = self._catalogue.ids[seed]
            title = self._catalogue.titles[seed] or item_id
            return {"code": "BOUGHT_TOGETHER", "text": f"Often bought together with {title}", "item_id": item_id}
        if source == "two_tower":
            return CLOSE_TO_RECENT
        if source == "repurchase":
            times, idle = self._count(index, "own_orders"), self._count(index, "own_idle_days")
            often = "once" if times == 1 else f"{times} times"
            text = f"Bought {often} before, last {idle} {'day' if idle == 1 else 'days'} ago"
            return {"code": "BOUGHT_BEFORE", "text": text, "item_id": None}
        orders = self._count(index, "item_orders_7d")
        text = f"In {orders} {'order' if orders == 1 else 'orders'} of the last 7 days"
        return {"code": "TRENDING", "text": text, "item_id": None}

    def _count(self, index: int, feature: str) -> int:
        return int(self._candidates.features[self._rows[index], FEATURE_INDEX[feature]])
