"""Simulates a shop, for a first look without data: all that it sells is made up.

Shoppers have a taste (a few categories) and come back at their own pace. In a visit they view items of their taste and
items that they bought before; some go into the cart, and in some visits a part of the cart is bought at the end. Items
differ in how often they are viewed, how often a view ends in the cart, a cart in a purchase, and a purchase in a
return. The four are independent, so the items viewed most are not those kept most. Some shoppers never buy. The range
of goods changes slowly over the year.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from apps.commands.online_retail import Imported
from features.contract.columns import EVENT_TYPE_CODES, SHOP_EVENTS_SCHEMA
from features.contract.timestamps import DAY, milliseconds

CATEGORIES, ITEMS_EACH, DAYS = 40, 40, 365
SECOND = 1000
AGAIN = 0.25
"""Share of views that go to items bought before, where there are any."""
NEVER_BUY = 0.12
"""Share of shoppers who never put anything into the cart."""
VIEW, CART, PURCHASE, RETURN = (EVENT_TYPE_CODES[event_type] for event_type in ("view", "cart", "purchase", "return"))

Chances = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ShopItems:
    """Holds what the shop sells; every array has shape [items]."""

    prices: Chances
    appeal: Chances
    """How often it is viewed, relative to the others of its category."""
    carted: Chances
    """Chance that a view ends in the cart."""
    bought: Chances
    """Chance that an item in the cart is bought, in a visit that buys."""
    returned: Chances
    """Chance that a purchase is returned."""
    appears: Whole
    """When it is listed, ms."""

    @staticmethod
    def sample(rng: np.random.Generator, *, start: int) -> "ShopItems":
        items = CATEGORIES * ITEMS_EACH
        return ShopItems(
            prices=np.round(rng.lognormal(1.0, 0.8, items) + 0.2, 2),
            appeal=rng.pareto(1.5, items) + 0.1,
            carted=rng.beta(1.2, 3.0, items),
            bought=rng.beta(1.5, 1.5, items),
            returned=rng.beta(0.4, 4.0, items),
            appears=np.where(rng.random(items) < 0.2, rng.integers(0, DAYS, items), 0) * DAY + start,
        )


def simulate(*, customers: int, end: datetime, seed: int) -> Imported:
    """Returns a year of the shop's events up to `end`, in order of time; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    start = milliseconds(end) - DAYS * DAY
    goods = ShopItems.sample(rng, start=start)
    shoppers = _Shoppers(customers, rng)
    pace = rng.gamma(2.0, 10.0, customers) + 3
    now = start + (rng.random(customers) * 90 * DAY).astype(np.int64)
    visits = []
    while len(here := np.flatnonzero(now < start + DAYS * DAY)):
        visits.append(shoppers.visit(here, now[here], goods, rng))  # everyone's next visit at once
        now[here] += ((rng.exponential(pace[here]) + 1) * DAY).astype(np.int64)
    columns = [np.concatenate(column) for column in zip(*visits, strict=True)]
    events = _table(columns, goods, rng, end=start + DAYS * DAY)
    return Imported(events, [], timedelta(0), {"completeness": 1.0, "accuracy": 1.0, "consistency": 1.0})


class _Shoppers:
    """Holds what each shopper likes, and what they own by now."""

    def __init__(self, count: int, rng: np.random.Generator) -> None:
        taste = rng.permuted(np.tile(np.arange(CATEGORIES), (count, 1)), axis=1)[:, :3]
        self._shelf = (taste[:, :, None] * ITEMS_EACH + np.arange(ITEMS_EACH)).reshape(count, -1)
        self._buys = rng.beta(2.0, 3.0, count) * (rng.random(count) >= NEVER_BUY)
        self._owned = np.zeros((count, 1), dtype=np.int64)
        self._owns = np.zeros(count, dtype=np.int64)

    def visit(self, here: Whole, now: Whole, goods: ShopItems, rng: np.random.Generator) -> tuple[Whole, ...]:
        """Simulates one visit of each of `here`: returns customers, starts of visits, items, event types and times of
        all events of these visits, and of the returns that follow from them."""
        looks = rng.geometric(0.1, len(here))
        row = np.repeat(np.arange(len(here)), looks)
        shelf = self._shelf[here]
        reach = np.cumsum(goods.appeal[shelf] * (goods.appears[shelf] <= now[:, None]))
        width, ends = shelf.shape[1], reach[shelf.shape[1] - 1 :: shelf.shape[1]]
        begins = np.concatenate(([0.0], ends[:-1]))
        spot = begins[row] + rng.random(len(row)) * (ends - begins)[row]
        seen = shelf.ravel()[np.clip(np.searchsorted(reach, spot, side="right"), row * width, row * width + width - 1)]
        owns = self._owns[here[row]]
        again = (rng.random(len(row)) < AGAIN) & (owns > 0)
        seen = np.where(again, self._owned[here[row], (rng.random(len(row)) * owns).astype(np.int64)], seen)
        steps = np.cumsum(rng.integers(5, 60, len(row))) * SECOND
        times = now[row] + steps - np.repeat(steps[np.cumsum(looks) - looks], looks)
        last = times[np.cumsum(looks) - 1]

        # A shopper who views an item that they own mostly buys it again.
        put = rng.random(len(row)) < np.maximum(goods.carted[seen], 0.5 * again)
        put &= self._buys[here[row]] > 0
        cart, first = np.unique(row[put] * len(goods.prices) + seen[put], return_index=True)
        cart_row, carted = np.divmod(cart, len(goods.prices))
        buys = rng.random(len(here)) < self._buys[here]
        taken = buys[cart_row] & (rng.random(len(cart)) < goods.bought[carted])
        back = taken & (rng.random(len(cart)) < goods.returned[carted])
        self._take(here[cart_row[taken]], carted[taken])
        moments = (
            times, times[put][first] + 2 * SECOND, last[cart_row[taken]] + 60 * SECOND,
            now[cart_row[back]] + rng.integers(2 * 24, 15 * 24, int(back.sum())) * 3600 * SECOND,
        )  # fmt: skip
        rows = np.concatenate((row, cart_row, cart_row[taken], cart_row[back]))
        items = np.concatenate((seen, carted, carted[taken], carted[back]))
        types = np.repeat([VIEW, CART, PURCHASE, RETURN], [len(times_of_type) for times_of_type in moments])
        return here[rows], now[rows], items, types, np.concatenate(moments)

    def _take(self, customers: Whole, items: Whole) -> None:
        """Adds bought items to what customers own; `customers` in ascending order."""
        counts = np.bincount(customers, minlength=len(self._owns))
        position = np.arange(len(customers)) - (np.cumsum(counts) - counts)[customers]
        missing = int((self._owns + counts).max()) - self._owned.shape[1]
        if missing > 0:
            self._owned = np.pad(self._owned, ((0, 0), (0, missing)))
        self._owned[customers, self._owns[customers] + position] = items
        self._owns += counts


def _table(columns: list[Whole], goods: ShopItems, rng: np.random.Generator, *, end: int) -> pa.Table:
    """Returns the catalogue and everything that happened before `end`."""
    order = np.lexsort((columns[0], columns[4]))
    order = order[columns[4][order] < end]
    customers, visits, items, types, times = (column[order] for column in columns)
    moved = types >= PURCHASE
    # What a visit bought is one order. Ids are positions in the table, so they are the same for the same arguments.
    orders = np.array([f"o{user}-{at}" for user, at in zip(customers.tolist(), visits.tolist(), strict=True)], object)
    orders[~moved] = None
    happened = {
        "event_id": [f"s{row:08d}" for row in range(len(order))],
        "type": np.array(list(EVENT_TYPE_CODES), dtype=object)[types],
        "event_time": times,
        "user_id": [f"u{user}" for user in customers.tolist()],
        "item_id": [f"S{item:05d}" for item in items.tolist()],
        "quantity": np.where(moved, rng.integers(1, 4, len(items)), 1).astype(np.float64),
        "price": goods.prices[items],
        "order_id": orders,
    }
    listed = range(len(goods.prices))
    catalogue = {
        "event_id": [f"item:S{item:05d}" for item in listed],
        "type": ["item"] * len(goods.prices),
        "event_time": goods.appears,
        "item_id": [f"S{item:05d}" for item in listed],
        "price": goods.prices,
        "title": [f"Model {item % ITEMS_EACH} of line {item // ITEMS_EACH}" for item in listed],
        "category": [f"line-{item // ITEMS_EACH}" for item in listed],
    }
    return pa.concat_tables([_rows(catalogue), _rows(happened)])


def _rows(columns: dict[str, Any]) -> pa.Table:
    count = len(columns["event_id"])
    return pa.table(
        {
            field.name: pa.array(columns[field.name], field.type)
            if field.name in columns
            else pa.nulls(count, field.type)
            for field in SHOP_EVENTS_SCHEMA
        },
        SHOP_EVENTS_SCHEMA,
    )
