"""Defines what counts as an order, a unit, revenue and a return of an item, as SQL that both Spark and DuckDB run.

Spark counts the whole table of shop events; training counts the held-out events in memory. Each row becomes an entry of
an item's history (arrays.ITEM_COLUMNS).
"""

import duckdb
import pyarrow as pa

from features.contract import columns
from features.contract.timestamps import DAY

FIELDS = ("event_id", "type", "event_time", columns.ITEM, "quantity", "price", "order_id")
"""Columns of the shop events that the expressions read."""
COUNTED = "type IN ('purchase', 'return')"
"""The events that count."""
START_OF_DAY = f"event_time - (event_time % {DAY} + {DAY}) % {DAY}"
"""Start of the event's UTC day, ms."""
_UNITS = "CASE WHEN type = 'purchase' THEN coalesce(quantity, 1e0) END"
TOTALS = {
    columns.ORDERS: "CAST(count(DISTINCT CASE WHEN type = 'purchase' THEN coalesce(order_id, event_id) END) AS DOUBLE)",
    columns.UNITS: f"coalesce(sum({_UNITS}), 0e0)",
    columns.REVENUE: f"coalesce(sum({_UNITS} * coalesce(price, 0e0)), 0e0)",
    columns.RETURNS: "sum(CASE WHEN type = 'purchase' THEN 0e0 ELSE 1e0 END)",
}
"""Aggregates over the counted events of an item and day, float64. A line without an order id is an order of its own.
1e0 is a double to both engines, 1.0 would be a decimal to Spark."""


def daily_totals(events: pa.Table) -> pa.Table:
    """Adds up shop events (FIELDS, each event once): a row per item and day with ITEM, `day` (ms) and TOTALS."""
    totals = ", ".join(f"CAST({sql} AS DOUBLE) AS {name}" for name, sql in TOTALS.items())
    with duckdb.connect(config={"threads": 1}) as connection:  # so that sums are always taken in the same order
        counted = connection.from_arrow(events).filter(COUNTED).project(f"*, {START_OF_DAY} AS day")
        key = f"{columns.ITEM}, day"
        return counted.aggregate(f"{key}, {totals}", key).order(key).to_arrow_table()
