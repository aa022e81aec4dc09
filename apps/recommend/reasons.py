"""Why an item is shown, from the features that it was ranked by."""

from apps.recommend.schemas import ItemReason
from features.candidates import ABSENT, SOURCES, Candidates
from features.catalogue import Catalogue

MOST_REASONS = 2


def reasons_for(candidates: Candidates, row: int, catalogue: Catalogue) -> list[ItemReason]:
    """At most MOST_REASONS reasons for one candidate, the source that ranked it highest first."""
    ranks = candidates.ranks[row]
    drawn_by = [place for place in ranks.argsort(kind="stable") if ranks[place] < ABSENT]
    return [_reason(SOURCES[place], candidates, row, catalogue) for place in drawn_by[:MOST_REASONS]]


def _reason(source: str, candidates: Candidates, row: int, catalogue: Catalogue) -> ItemReason:
    if source == "co_purchase":
        because = int(candidates.because[row])
        title = catalogue.titles[because] or catalogue.ids[because]
        return ItemReason(
            code="BOUGHT_TOGETHER", text=f"Often bought together with {title}", item_id=catalogue.ids[because]
        )
    if source == "repurchase":
        times, idle = int(candidates.column("own_orders")[row]), int(candidates.column("own_idle_days")[row])
        often = "once" if times == 1 else f"{times} times"
        return ItemReason(code="BOUGHT_BEFORE", text=f"Bought {often} before, last {idle} days ago")
    if source == "two_tower":
        return ItemReason(code="CLOSE_TO_RECENT", text="Close to what this visitor lately took")
    orders = int(candidates.column("item_orders_7d")[row])
    return ItemReason(code="TRENDING", text=f"In {orders} orders of the last 7 days")
