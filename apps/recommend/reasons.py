"""Why an item is shown, from the features that it was ranked by. Codes are stable; texts are for people."""

from typing import Any

from features.candidates import ABSENT, SOURCES, Candidates
from features.catalogue import Catalogue

MOST_REASONS = 2
NEW = "new"
"""Source of items that the release does not know."""


def sources_of(candidates: Candidates, row: int) -> list[tuple[str, int]]:
    """(source, place in it from 0 on) of a candidate, the source that ranked it highest first."""
    ranks = candidates.ranks[row].tolist()
    drawn = sorted((rank, place) for place, rank in enumerate(ranks) if rank < ABSENT)
    return [(SOURCES[place], rank) for rank, place in drawn] or [(NEW, 0)]


def reasons_for(
    candidates: Candidates,
    row: int,
    catalogue: Catalogue,
    sources: list[tuple[str, int]],
    *,
    pinned: bool,
    explored: bool,
) -> list[dict[str, Any]]:
    """At most MOST_REASONS reasons for one candidate."""
    if pinned:
        return [{"code": "PINNED", "text": "Placed here by the shop", "item_id": None}]
    reasons = [{"code": "EXPLORED", "text": "Shown to learn how it does", "item_id": None}] if explored else []
    reasons += [_reason(source, candidates, row, catalogue) for source, _ in sources]
    return reasons[:MOST_REASONS]


def _reason(source: str, candidates: Candidates, row: int, catalogue: Catalogue) -> dict[str, Any]:
    if source == "co_purchase":
        because = int(candidates.because[row])
        title = catalogue.titles[because] or catalogue.ids[because]
        return _told("BOUGHT_TOGETHER", f"Often bought together with {title}", catalogue.ids[because])
    if source == "repurchase":
        times, idle = int(candidates.column("own_orders")[row]), int(candidates.column("own_idle_days")[row])
        often = "once" if times == 1 else f"{times} times"
        return _told("BOUGHT_BEFORE", f"Bought {often} before, last {idle} days ago")
    if source == "two_tower":
        return _told("CLOSE_TO_RECENT", "Close to what this visitor lately took")
    if source == NEW:
        return _told("NEW_ITEM", "New in the shop")
    orders = int(candidates.column("item_orders_7d")[row])
    return _told("TRENDING", f"In {orders} orders of the last 7 days")


def _told(code: str, text: str, item_id: str | None = None) -> dict[str, Any]:
    return {"code": code, "text": text, "item_id": item_id}
