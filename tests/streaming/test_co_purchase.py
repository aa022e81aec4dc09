"""Neighbours of items against a small example counted by hand."""

from collections import Counter
from math import sqrt
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from features.contract import columns
from features.contract.columns import SHOP_EVENTS
from features.contract.timestamps import DAY
from features.store import feature_store, views
from infra.settings import Settings
from streaming import co_purchase
from streaming.co_purchase import neighbours, run
from streaming.tables import SCHEMAS, write_table

pytestmark = pytest.mark.slow

DAY_0 = 20_000 * DAY
ORDERS = {"o1": "abc", "o2": "abc", "o3": "ab", "o4": "a", "o5": "bd", "o6": "bd"}
NEAR = {
    ("a", "b"): 3 / sqrt(4 * 5),
    ("a", "c"): 2 / sqrt(4 * 2),
    ("b", "c"): 2 / sqrt(5 * 2),
    ("b", "d"): 2 / sqrt(5 * 2),
}
"""Cosine of pairs that met in at least two orders."""


def events(**more: Any) -> list[dict[str, Any]]:
    return [
        {
            "event_id": f"{order}:{line}",
            "type": "purchase",
            "event_time": DAY_0 + day,
            "item_id": item,
            "order_id": order,
        }
        | more
        for day, (order, basket) in enumerate(ORDERS.items())
        for line, item in enumerate(basket + basket[:1])  # the first item stands on two lines
    ]


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(
        [{name: row.get(name) for name in SCHEMAS[SHOP_EVENTS].names} for row in rows], SCHEMAS[SHOP_EVENTS]
    )


def best_neighbours(
    spark: SparkSession, rows: list[dict[str, Any]], *moments: int
) -> list[dict[tuple[str, str], float]]:
    """(item, neighbour) to similarity, as of each moment."""
    near = neighbours(spark.createDataFrame(table(rows)), moments=moments).collect()
    return [
        {(row[columns.ITEM], row.neighbour): row.similarity for row in near if row.moment == moment}
        for moment in moments
    ]


def test_similarity_is_the_cosine_of_order_vectors_both_ways(spark: SparkSession) -> None:
    noise = [
        *events(type="view"),
        {"event_id": "n", "type": "return", "event_time": DAY_0, "item_id": "d", "order_id": "o1"},
    ]
    alone = {"event_id": "m", "type": "purchase", "event_time": DAY_0 + 50, "item_id": "d", "order_id": None}
    before, after = best_neighbours(spark, [*events(), *noise, alone], DAY_0 + 50, DAY_0 + 51)
    assert before == pytest.approx(NEAR | {(b, a): value for (a, b), value in NEAR.items()})
    assert after["d", "b"] == pytest.approx(2 / sqrt(5 * 3))  # a purchase without an order is an order of its own


def test_a_planted_future_order_changes_nothing(spark: SparkSession) -> None:
    later = [
        row | {"event_time": DAY_0 + 100, "item_id": "d", "event_id": f"f{row['event_id']}", "order_id": order}
        for row in events()
        for order in (f"f{row['order_id']}", "o4")  # new orders, and a line that joins an old one
    ]
    joined = [row for row in events() if row["order_id"] != "o4"]
    nothing, early, then, after = best_neighbours(spark, events() + later, DAY_0, DAY_0 + 50, DAY_0 + 100, DAY_0 + 101)
    assert nothing == {}
    assert early == then
    assert then.keys() == best_neighbours(spark, joined, DAY_0 + 50)[0].keys()
    assert after != then


def test_large_orders_and_long_lists_are_cut_the_same_way_each_time(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"event_id": f"{order}{n}", "type": "purchase", "event_time": DAY_0, "item_id": f"i{n:02}", "order_id": order}
        for order in "xyz"
        for n in range(40)
    ]
    monkeypatch.setattr(co_purchase, "NEIGHBOURS_KEPT", 3)
    monkeypatch.setattr(co_purchase, "LINES_PER_ORDER", 20)
    (cut,) = best_neighbours(spark, rows, DAY_0 + 1)
    assert max(Counter(item for item, _ in cut).values()) == 3
    assert all(0 < value <= 1 for value in cut.values())
    monkeypatch.setattr(co_purchase, "NEIGHBOURS_KEPT", 60)
    forwards, backwards = (best_neighbours(spark, part, DAY_0 + 1)[0] for part in (rows, rows[::-1]))
    assert forwards == backwards


def test_neighbours_are_stored_as_of_each_moment(spark: SparkSession, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    write_table(settings.offline_dir / SHOP_EVENTS, "batch-0", table(events()))
    for _ in range(2):
        assert run(spark, settings, moments=[DAY_0 + DAY, DAY_0 + 2]) == 4
    moments = pd.to_datetime([DAY_0 + 1, DAY_0 + 2, DAY_0 + DAY], unit="ms", utc=True)
    examples = pd.DataFrame({columns.ITEM: ["a", "a", "a"], columns.EVENT_TIMESTAMP: moments})
    rows = feature_store.historical(
        feature_store.open_store(settings), views.ITEM_NEIGHBOURS_SERVICE, examples, before=False
    )
    assert rows[f"{views.ITEM_NEIGHBOURS}__{columns.NEIGHBOURS}"].to_pylist() == [None, ["b", "c"], ["c", "b"]]
    assert rows[f"{views.ITEM_NEIGHBOURS}__{columns.SIMILARITIES}"].to_pylist()[2] == pytest.approx(
        [NEAR["a", "c"], NEAR["a", "b"]]
    )
