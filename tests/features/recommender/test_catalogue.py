"""What sold, by item: whole days before today only, and what is trending right now."""

from typing import Any

import numpy as np
import pytest

from features.contract import columns
from features.contract.timestamps import DAY
from features.history.arrays import ITEM_COLUMNS, History, from_lists
from features.recommender.catalogue import ITEM_WINDOWS, Catalogue, item_windows, trending_scores

TODAY = 20_000 * DAY
NOON = TODAY + DAY // 2


def items(*rows: dict[int, tuple[float, float, float, float]]) -> History:
    """One row an item: days before today to (orders, units, revenue, returns)."""
    lists: list[dict[str, Any]] = []
    for row in rows:
        days = sorted(row, reverse=True)
        values = zip(*(row[day] for day in days), strict=True) if days else [[]] * 4
        named = zip((columns.ORDERS, columns.UNITS, columns.REVENUE, columns.RETURNS), map(list, values), strict=True)
        lists.append({columns.TIMES: [TODAY - day * DAY for day in days], **dict(named)})
    return from_lists(lists, ITEM_COLUMNS)


def test_windows_count_whole_days_before_today() -> None:
    sold = {1: (1, 2, 3.0, 0), 7: (10, 20, 30.0, 1), 8: (100, 200, 300.0, 1), 30: (7, 7, 7.0, 7), 31: (9, 9, 9.0, 9)}
    windows_by_name = dict(zip(ITEM_WINDOWS, item_windows(items(sold), NOON)[0].tolist(), strict=True))
    assert windows_by_name == {
        "item_orders_1d": 1, "item_orders_7d": 11, "item_orders_30d": 118, "item_units_30d": 229,
        "item_revenue_30d": 340, "item_returns_30d": 9, "item_trend": pytest.approx(12 / (118 * 7 / 30 + 1), rel=1e-6),
    }  # fmt: skip


@pytest.mark.parametrize("moment", [TODAY, NOON, TODAY + DAY - 1])
def test_today_and_what_comes_later_change_nothing(moment: int) -> None:
    past = {1: (1.0, 1.0, 1.0, 1.0), 5: (2.0, 2.0, 2.0, 0.0)}
    later = {0: (50.0, 50.0, 50.0, 50.0), -1: (70.0, 70.0, 70.0, 70.0)}
    windows = item_windows(items(past, {}), moment)
    assert np.array_equal(item_windows(items(past | later, later), moment), windows)
    assert (windows.shape, windows.dtype) == ((2, len(ITEM_WINDOWS)), np.float32)


def test_an_item_that_never_sold_has_a_steady_trend_and_zeros() -> None:
    assert item_windows(items({}), NOON)[0, :-1].tolist() == [0] * 6
    assert item_windows(items({}), NOON)[0, -1] == pytest.approx(1)
    steady = dict.fromkeys(range(1, 31), (100.0, 0.0, 0.0, 0.0))
    assert item_windows(items(steady), NOON)[0, -1] == pytest.approx(1, rel=0.01)


def test_trending_sees_today_and_weighs_younger_days_more() -> None:
    sale = (1.0, 1.0, 1.0, 0.0)
    today, yesterday, six, seven, nothing = trending_scores(items({0: sale}, {1: sale}, {6: sale}, {7: sale}, {}), NOON)
    assert (today, yesterday) == (1.0, pytest.approx(0.7))
    assert six == pytest.approx(0.7**6)
    assert (seven, nothing) == (0, 0)


def test_unknown_ids_have_no_index() -> None:
    empty = np.empty((2, 0), dtype=np.float32)
    catalogue = Catalogue(
        ("a", "b"), ("", ""), np.ones(2, np.float32), empty.astype(np.int32), empty, empty, {"a": 0, "b": 1}
    )
    assert catalogue.indices(["b", "x", "a", ""]).tolist() == [1, -1, 0, -1]
    assert catalogue.indices([]).dtype == np.int64
