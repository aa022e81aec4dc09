"""Which items are bought in the same order: counted by Spark, kept as each item's nearest neighbours.

Similarity is the cosine of the two items' order vectors, orders(a, b) / sqrt(orders(a) * orders(b)) (Linden, Smith
and York, Amazon.com Recommendations: Item-to-Item Collaborative Filtering, 2003). Of an order with very many lines
a fixed pseudo-random part is counted, which bounds the pairs (the interaction cut of Schelter, Boden and Markl,
Scalable Similarity-Based Neighborhood Methods with MapReduce, RecSys 2012).
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from features import columns, views
from infra.settings import Settings
from streaming.items import read_shop_events
from streaming.tables import write_table

NEIGHBOURS_KEPT = 60
LINES_PER_ORDER = 60
MIN_ORDERS = 2
"""Pairs that met in fewer orders are chance."""


def neighbours(events: DataFrame, *, as_of: int) -> DataFrame:
    """Shop events before `as_of` (ms) to (item, neighbour, similarity), the NEIGHBOURS_KEPT best of each item."""
    lines = (
        events.where((F.col("type") == "purchase") & (F.col("event_time") < as_of))
        .select(F.coalesce("order_id", "event_id").alias("order"), F.col(columns.ITEM).alias("item"))
        .distinct()
    )
    baskets = lines.groupBy("order").agg(
        F.array_sort(F.collect_list(F.struct(F.xxhash64("item", "order"), "item"))).alias("drawn")
    )
    baskets = baskets.select("order", F.slice("drawn.item", 1, LINES_PER_ORDER).alias("items")).cache()
    counts = baskets.select(F.explode("items").alias("item")).groupBy("item").agg(F.count("*").alias("orders"))
    pairs = (
        baskets.select("items", F.explode("items").alias("item"))
        .select("item", F.explode("items").alias("neighbour"))
        .where("item < neighbour")
        .groupBy("item", "neighbour")
        .agg(F.count("*").alias("together"))
        .where(F.col("together") >= MIN_ORDERS)
    )
    scored = (
        pairs.join(F.broadcast(counts), "item")
        .join(
            F.broadcast(counts.select(F.col("item").alias("neighbour"), F.col("orders").alias("others"))), "neighbour"
        )
        .select(
            "item", "neighbour", (F.col("together") / F.sqrt(F.col("orders") * F.col("others"))).alias("similarity")
        )
    )
    both = scored.unionByName(
        scored.select(F.col("neighbour").alias("item"), F.col("item").alias("neighbour"), "similarity")
    )
    best = Window.partitionBy("item").orderBy(F.desc("similarity"), "neighbour")
    return both.withColumn("rank", F.row_number().over(best)).where(F.col("rank") <= NEIGHBOURS_KEPT)


def run(spark: SparkSession, settings: Settings, *, moments: Sequence[int]) -> int:
    """Write the neighbours as of each moment (ms); returns how many items have any at the last one."""
    events = read_shop_events(spark, settings).cache()
    rows = 0
    for moment in sorted(moments):
        table = (
            neighbours(events, as_of=moment)
            .groupBy("item")
            .agg(F.array_sort(F.collect_list(F.struct("rank", "neighbour", "similarity"))).alias("best"))
            .select(
                F.col("item").alias(columns.ITEM),
                F.col("best.neighbour").alias(columns.NEIGHBOURS),
                F.col("best.similarity").alias(columns.SIMILARITIES),
            )
            .toArrow()
        )
        rows = table.num_rows
        stamp = pa.timestamp("us", tz="UTC")
        table = table.append_column(
            columns.EVENT_TIMESTAMP, pa.array([moment * 1000] * rows, pa.int64()).cast(stamp)
        ).append_column(columns.CREATED_TIMESTAMP, pa.array([datetime.now(UTC)] * rows, stamp))
        write_table(settings.offline_dir / views.ITEM_NEIGHBOURS, f"as-of-{moment}", table)
    return rows
