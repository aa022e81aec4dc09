"""A simulated shop, for a first look without data: it is a simulator, and what it sells is made up.

Shoppers have a taste (a few categories), come back at their own pace, fill a basket from their taste, and buy again
what they bought before; the range of goods changes slowly over the year.
"""

from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

from apps.ingest.online_retail import Imported
from features.columns import SHOP_EVENTS_SCHEMA
from features.events import milliseconds

CATEGORIES, ITEMS_EACH, DAYS = 40, 40, 365
DAY = 24 * 3_600_000
AGAIN = 0.35
"""Share of a basket that was bought before."""
RETURNED = 0.02


def simulate(*, customers: int, end: datetime, seed: int) -> Imported:
    """A year of the shop's events up to `end`, in order of time; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    items = CATEGORIES * ITEMS_EACH
    prices = np.round(rng.lognormal(1.0, 0.8, items) + 0.2, 2)
    appeal = rng.pareto(1.5, items) + 0.1
    start = milliseconds(end) - DAYS * DAY
    appears = np.where(rng.random(items) < 0.2, rng.integers(0, DAYS, items), 0) * DAY + start
    rows = []
    for customer in range(customers):
        rows += _shopper(customer, rng, prices=prices, appeal=appeal, appears=appears, start=start)
    rows.sort(key=lambda row: (row["event_time"], row["event_id"]))
    catalogue = [
        {
            "event_id": f"item:S{item:05d}", "item_id": f"S{item:05d}",
            "type": "item", "event_time": int(appears[item]),
            "title": f"Model {item % ITEMS_EACH} of line {item // ITEMS_EACH}", "price": float(prices[item]),
            "category": f"line-{item // ITEMS_EACH}",
        }
        for item in range(items)
    ]  # fmt: skip
    events = pa.Table.from_pylist(
        [{name: row.get(name) for name in SHOP_EVENTS_SCHEMA.names} for row in catalogue + rows], SHOP_EVENTS_SCHEMA
    )
    return Imported(events, [], timedelta(0), {"completeness": 1.0, "accuracy": 1.0, "consistency": 1.0})


def _shopper(
    customer: int,
    rng: np.random.Generator,
    *,
    prices: np.ndarray[tuple[int], np.dtype[np.float64]],
    appeal: np.ndarray[tuple[int], np.dtype[np.float64]],
    appears: np.ndarray[tuple[int], np.dtype[np.int64]],
    start: int,
) -> list[dict[str, object]]:
    taste = rng.choice(CATEGORIES, 3, replace=False)
    pace = rng.gamma(2.0, 25.0) + 5
    now = start + int(rng.random() * 90 * DAY)
    owned: list[int] = []
    rows: list[dict[str, object]] = []
    while now < start + DAYS * DAY:
        order = f"o{customer}-{now}"
        for line in range(int(rng.geometric(0.12))):
            if owned and rng.random() < AGAIN:
                item = owned[int(rng.integers(len(owned)))]
            else:
                shelf = int(rng.choice(taste)) * ITEMS_EACH + np.arange(ITEMS_EACH)
                shelf = shelf[appears[shelf] <= now]
                if not len(shelf):
                    continue
                item = int(rng.choice(shelf, p=appeal[shelf] / appeal[shelf].sum()))
            owned.append(item)
            common: dict[str, object] = {
                "user_id": f"u{customer}", "item_id": f"S{item:05d}", "quantity": float(rng.integers(1, 7)),
                "price": float(prices[item]), "order_id": order,
            }  # fmt: skip
            rows.append({**common, "event_id": f"{order}:{line}", "type": "purchase", "event_time": now})
            back = now + int(rng.integers(2, 15)) * DAY
            if rng.random() < RETURNED and back < start + DAYS * DAY:
                rows.append({**common, "event_id": f"{order}:{line}:r", "type": "return", "event_time": back})
        now += int((rng.exponential(pace) + 1) * DAY)
    return rows
