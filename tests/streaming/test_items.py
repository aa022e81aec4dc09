"""Daily totals of items against a small example counted by hand."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from pyspark.sql import SparkSession

from features.contract import columns
from features.contract.columns import SHOP_EVENTS
from features.contract.timestamps import DAY
from features.history import item_totals
from features.history.arrays import ITEM_COLUMNS, from_arrow, from_lists
from features.recommender.catalogue import ITEM_WINDOWS, item_windows
from features.store import feature_store, views
from infra.settings import Settings
from streaming import items
from streaming.items import daily_totals, item_rows
from streaming.tables import SCHEMAS, write_table

DAY_0 = 20_000 * DAY
CREATED = datetime(2026, 11, 22, tzinfo=UTC)


def event(event_id: str, day: float, item: str = "a", **more: Any) -> dict[str, Any]:
    usual = {"type": "purchase", "event_time": DAY_0 + int(day * DAY), "item_id": item, "quantity": 2.0, "price": 1.5}
    return {**usual, "event_id": event_id, "order_id": event_id[0]} | more


EVENTS = [
    event("x1", 0), event("x2", 0), event("y1", 0.999), event("y1", 0.999),  # orders x and y; y1 was sent twice
    event("z1", 1, quantity=None, price=4.0), event("w1", 1, price=None, order_id=None), event("r1", 1, type="return"),
    event("b1", 1, "b"), event("v1", 1, "b", type="view"), event("i1", 2, "b", type="item"),
    event("q1", 40, "a"),
]  # fmt: skip
TOTALS = {  # item, day: orders, units, revenue, returns
    ("a", 0): (2, 6, 9, 0), ("a", 1): (2, 3, 4, 1), ("a", 40): (1, 2, 3, 0), ("b", 1): (1, 2, 3, 0),
}  # fmt: skip


def table(events: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(
        [{name: event_.get(name) for name in SCHEMAS[SHOP_EVENTS].names} for event_ in events], SCHEMAS[SHOP_EVENTS]
    )


def by_day(totals: pa.Table) -> dict[tuple[str, int], tuple[float, ...]]:
    return {
        (row[columns.ITEM], (row["day"] - DAY_0) // DAY): tuple(row[name] for name in item_totals.TOTALS)
        for row in totals.to_pylist()
    }


def test_totals_are_those_counted_by_hand() -> None:
    once = list({event["event_id"]: event for event in EVENTS}.values())
    assert by_day(item_totals.daily_totals(table(once))) == TOTALS
    before_1970 = item_totals.daily_totals(table([event("x1", 0, event_time=-1)]))
    assert before_1970["day"].to_pylist() == [-DAY]


@pytest.mark.slow
def test_spark_counts_the_same(spark: SparkSession) -> None:
    early = event("x9", 0, event_time=-1)
    frame = spark.createDataFrame(table([*EVENTS, early])).dropDuplicates(["event_id"])
    assert by_day(daily_totals(frame).toArrow()) == TOTALS | {("a", -1 - DAY_0 // DAY): (1, 2, 3, 0)}


def counted() -> pa.Table:
    """TOTALS as the table that Spark answers."""
    rows = [
        {columns.ITEM: item, "day": DAY_0 + day * DAY}
        | dict(zip((columns.ORDERS, columns.UNITS, columns.REVENUE, columns.RETURNS), map(float, totals), strict=True))
        for (item, day), totals in TOTALS.items()
    ]
    return pa.Table.from_pylist(rows[::-1])


def test_a_row_holds_from_the_end_of_its_day_and_reaches_back_37_days() -> None:
    rows = item_rows(counted(), every_day=True, created=CREATED).to_pylist()
    holds = [
        (
            row[columns.ITEM],
            (round(row[columns.EVENT_TIMESTAMP].timestamp() * 1000) - DAY_0) / DAY,
            [(time - DAY_0) // DAY for time in row[columns.TIMES]],
            row[columns.ORDERS],
        )
        for row in rows
    ]
    assert holds == [("a", 1, [0], [2]), ("a", 2, [0, 1], [2, 2]), ("a", 41, [40], [1]), ("b", 2, [1], [1])]
    newest = item_rows(counted(), every_day=False, created=CREATED)
    assert newest.to_pylist() == [rows[2], rows[3]]


def test_nobody_learns_from_a_day_that_is_not_over(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    write_table(settings.offline_dir / views.ITEM_HISTORY, "all", item_rows(counted(), every_day=True, created=CREATED))
    moments = [DAY_0 + int(day * DAY) for day in (0.5, 1.5, 2.0, 39.9)]
    examples = pd.DataFrame({columns.ITEM: "a", columns.EVENT_TIMESTAMP: pd.to_datetime(moments, unit="ms", utc=True)})
    rows = feature_store.historical(
        feature_store.open_store(settings), views.ITEM_WINDOWS_SERVICE, examples, before=False
    )
    known = from_arrow(rows, ITEM_COLUMNS, names={name: f"{views.ITEM_HISTORY}__{name}" for name in ITEM_COLUMNS})
    orders = ITEM_WINDOWS.index("item_orders_30d")
    assert [item_windows(known.row(row), moment)[0, orders] for row, moment in enumerate(moments)] == [0, 2, 4, 0]


@pytest.mark.slow
def test_the_rebuild_writes_every_day_and_the_refresh_what_sold(spark: SparkSession, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    feast = feature_store.open_store(settings)
    write_table(settings.offline_dir / SHOP_EVENTS, "batch-0", table(EVENTS))
    for _ in range(2):
        assert items.rebuild(spark, feast, settings) == len(TOTALS)
    assert ds.dataset(settings.offline_dir / views.ITEM_HISTORY).count_rows() == len(TOTALS)

    def online(item: str) -> np.ndarray[Any, Any]:
        rows = from_lists(feature_store.online_rows(feast, views.ITEM_HISTORY, [item]), ITEM_COLUMNS)
        return np.column_stack(((rows.times - DAY_0) // DAY, rows.entries[columns.ORDERS]))

    assert online("a").tolist() == [[40, 1]]
    more = [event("n1", 41), event("n2", 41, "b"), event("y1", 0.999)]
    write_table(settings.offline_dir / SHOP_EVENTS, "batch-1", table(more))
    items.refresh(spark, feast, settings, {"a"}, latest=DAY_0 + 41 * DAY)
    assert online("a").tolist() == [[40, 1], [41, 1]]
    assert online("b").tolist() == [[1, 1]]  # nobody asked for it
