"""The simulated shop is the same for the same seed, in order, and its events follow the rates of its items."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pytest

from apps.commands.simulated_shop import CATEGORIES, DAYS, ITEMS_EACH, ShopItems, simulate
from features.contract.columns import SHOP_EVENTS_SCHEMA
from features.contract.timestamps import DAY, milliseconds

END = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture(scope="module")
def year() -> pd.DataFrame:
    return simulate(customers=300, end=END, seed=3).events.to_pandas()


def test_the_same_arguments_make_the_same_year() -> None:
    first, second, other = (simulate(customers=20, end=END, seed=seed).events for seed in (3, 3, 4))
    assert first.schema == SHOP_EVENTS_SCHEMA
    assert first.equals(second)
    assert not first.equals(other)
    assert pc.count_distinct(first["event_id"]).as_py() == first.num_rows


def test_the_catalogue_comes_first_and_what_happened_is_in_order_of_time(year: pd.DataFrame) -> None:
    count = CATEGORIES * ITEMS_EACH
    assert (year["type"][:count] == "item").all()
    happened = year[count:]
    assert set(happened["type"]) == {"view", "cart", "purchase", "return"}
    assert happened["event_time"].is_monotonic_increasing
    assert happened["event_time"].between(milliseconds(END) - DAYS * DAY, milliseconds(END) - 1).all()
    listed = year[:count].set_index("item_id")["event_time"]
    assert (happened["event_time"] >= happened["item_id"].map(listed)).all()


def test_a_visit_goes_from_looks_to_the_cart_to_one_order(year: pd.DataFrame) -> None:
    order = year[year["type"] == "purchase"].iloc[0]
    near = year[(year["user_id"] == order["user_id"]) & ((year["event_time"] - order["event_time"]).abs() < DAY // 4)]
    steps = {kind: near[near["type"] == kind].groupby("item_id")["event_time"].min() for kind in ("view", "cart")}
    bought = near[near["order_id"] == order["order_id"]]
    assert bought["event_time"].nunique() == 1
    for item in bought["item_id"]:
        assert steps["view"][item] < steps["cart"][item] < order["event_time"]
    orders = year[year["type"] == "purchase"]["order_id"]
    assert year[year["type"] == "return"]["order_id"].isin(orders).all()


def test_some_only_look(year: pd.DataFrame) -> None:
    kinds = year[year["user_id"].notna()].groupby("user_id")["type"].agg(set)
    only = [user for user, seen in kinds.items() if seen == {"view"}]
    assert 0.05 < len(only) / 300 < 0.25


def test_events_follow_the_rates_of_the_items(year: pd.DataFrame) -> None:
    goods = ShopItems.sample(np.random.default_rng(3), start=milliseconds(END) - DAYS * DAY)
    counts = year[year["user_id"].notna()].groupby(["type", "item_id"]).size().unstack(0).fillna(0)
    row = counts.index.str[1:].astype(int)

    def corresponds(above: str, below: str, truth: np.ndarray[tuple[int], np.dtype[np.float64]], least: int) -> float:
        enough = (counts[below] >= least).to_numpy()
        shares = (counts[above] / counts[below].clip(lower=1)).to_numpy()[enough]
        return float(np.corrcoef(shares, truth[row][enough])[0, 1])

    assert corresponds("cart", "view", goods.carted, 30) > 0.8
    assert corresponds("purchase", "cart", goods.bought, 10) > 0.6
    assert corresponds("return", "purchase", goods.returned, 5) > 0.5
