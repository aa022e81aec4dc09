"""Counts daily totals of every item with Spark from the table of shop events: the source of item windows.

The full run writes the row of every day, for training; the refresh writes the newest row of the items that sold.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from features.contract import columns
from features.contract.columns import SHOP_EVENTS
from features.contract.timestamps import DAY
from features.history import arrays, item_totals
from features.history.arrays import History, history_rows
from features.store import views
from features.store.feast_import import FeatureStore
from features.store.feature_store import write_online
from infra.settings import Settings
from streaming.tables import write_table


def read_shop_events(spark: SparkSession, settings: Settings, fields: Sequence[str]) -> DataFrame:
    """Reads columns of the table of shop events, event_id among them, each event once."""
    return spark.read.parquet(str(settings.offline_dir / SHOP_EVENTS)).select(*fields).dropDuplicates(["event_id"])


def daily_totals(events: DataFrame) -> DataFrame:
    """Turns shop events into a row per item and UTC day: ORDERS, UNITS, REVENUE, RETURNS (double)."""
    return (
        events.where(item_totals.COUNTED)
        .groupBy(columns.ITEM, F.expr(item_totals.START_OF_DAY).alias("day"))
        .agg(*(F.expr(sql).cast("double").alias(name) for name, sql in item_totals.TOTALS.items()))
    )


def item_rows(totals: pa.Table, *, every_day: bool, created: datetime) -> pa.Table:
    """Returns rows of the item history: a row per item and day, or only each item's newest.

    A row holds from the end of its day on, so that training never sees an unfinished day.
    """
    totals = totals.sort_by([(columns.ITEM, "ascending"), ("day", "ascending")])
    items, key = np.unique(np.asarray(totals[columns.ITEM].to_numpy(), dtype=object), return_inverse=True)
    days = totals["day"].to_numpy()
    entries = {
        columns.TIMES: days,
        **{name: totals[name].to_numpy() for name in arrays.ITEM_COLUMNS if name != columns.TIMES},
    }
    ends = np.arange(1, len(days) + 1)
    if not every_day:
        ends = ends[np.diff(key, append=-1) != 0]
    histories = History(np.searchsorted(key, np.arange(len(items) + 1)), entries)
    rows = histories.at(key[ends - 1], days[ends - 1], cap=arrays.ITEM_CAP, horizon=arrays.ITEM_HORIZON)
    names = pa.array(items[key[ends - 1]], pa.string())
    return history_rows(columns.ITEM, names, days[ends - 1] + DAY, rows, created=created)


def rebuild(spark: SparkSession, store: FeatureStore, settings: Settings) -> int:
    """Writes every day's row of every item; returns the number of rows."""
    totals = daily_totals(read_shop_events(spark, settings, item_totals.FIELDS)).toArrow()
    created = datetime.now(UTC)
    write_table(settings.offline_dir / views.ITEM_HISTORY, "all", item_rows(totals, every_day=True, created=created))
    write_online(store, views.ITEM_HISTORY, item_rows(totals, every_day=False, created=created))
    return int(totals.num_rows)


def refresh(
    spark: SparkSession, store: FeatureStore, settings: Settings, touched: Collection[str], *, latest: int
) -> None:
    """Refreshes the online row of the `touched` items from the events of the days before `latest` (ms)."""
    # The time is filtered first, so that old row groups are never read.
    recent = spark.read.parquet(str(settings.offline_dir / SHOP_EVENTS)).select(*item_totals.FIELDS)
    recent = recent.where(F.col("event_time") > latest - arrays.ITEM_HORIZON).dropDuplicates(["event_id"])
    totals = daily_totals(recent).toArrow()
    totals = totals.filter(pc.is_in(totals[columns.ITEM], pa.array(list(touched), pa.string())))
    if totals.num_rows:
        write_online(store, views.ITEM_HISTORY, item_rows(totals, every_day=False, created=datetime.now(UTC)))
