"""Counts with Spark which items are bought in the same order, and keeps each item's nearest neighbours.

Similarity is the cosine of the two items' order vectors, orders(a, b) / sqrt(orders(a) * orders(b)) (Linden, Smith
and York, Amazon.com Recommendations: Item-to-Item Collaborative Filtering, 2003). Of an order with very many lines
a fixed pseudo-random part is counted, which bounds the pairs (the interaction cut of Schelter, Boden and Markl,
Scalable Similarity-Based Neighborhood Methods with MapReduce, RecSys 2012).
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from features.contract import columns
from features.store import views
from infra.settings import Settings
from streaming.items import read_shop_events
from streaming.tables import write_table

NEIGHBOURS_KEPT = 60
LINES_PER_ORDER = 60
MIN_ORDERS = 2
"""Pairs in fewer orders are taken for chance."""


def neighbours(events: DataFrame, *, moments: Sequence[int]) -> DataFrame:
    """Turns shop events into (moment, item, neighbour, similarity, rank): the NEIGHBOURS_KEPT best of each item as of
    each moment (ms), counting only orders whose last line came before it."""
    lines = (
        events.where((F.col("type") == "purchase") & (F.col("event_time") < max(moments)))
        .groupBy(F.coalesce("order_id", "event_id").alias("order"), F.col(columns.ITEM).alias("name"))
        .agg(F.min("event_time").alias("time"))
    )
    # Items become numbers: millions of pairs are counted, and text would be hashed and compared for each.
    codes = lines.select("name").distinct().coalesce(1).sortWithinPartitions("name")
    codes = codes.select("name", F.monotonically_increasing_id().alias("item")).cache()
    sampled = F.array_sort(F.collect_list(F.struct(F.xxhash64("name", "order").alias("random"), "item")))
    baskets = (
        lines.join(F.broadcast(codes), "name")
        .groupBy("order")
        .agg(F.slice(sampled, 1, LINES_PER_ORDER).getField("item").alias("items"), F.max("time").alias("time"))
        .cache()
    )
    counts = _count(baskets.select("time", F.explode("items").alias("item")), ["item"], moments, "orders")
    pairs = _count(
        baskets.select("time", "items", F.explode("items").alias("item"))
        .select("time", "item", F.explode("items").alias("other"))
        .where("item < other"),
        ["item", "other"],
        moments,
        "together",
    ).where(F.col("together") >= MIN_ORDERS)
    scored = (
        pairs.join(F.broadcast(counts), ["moment", "item"])
        .join(
            F.broadcast(counts.select("moment", F.col("item").alias("other"), F.col("orders").alias("others"))),
            ["moment", "other"],
        )
        .withColumn("similarity", F.col("together") / F.sqrt(F.col("orders") * F.col("others")))
    )
    both = scored.select("moment", "item", "other", "similarity").unionAll(
        scored.select("moment", F.col("other").alias("item"), F.col("item").alias("other"), "similarity")
    )
    best = Window.partitionBy("moment", "item").orderBy(F.desc("similarity"), "other")
    return (
        both.withColumn("rank", F.row_number().over(best))
        .where(F.col("rank") <= NEIGHBOURS_KEPT)
        .join(F.broadcast(codes.select(F.col("name").alias(columns.ITEM), "item")), "item")
        .join(F.broadcast(codes.select(F.col("name").alias("neighbour"), F.col("item").alias("other"))), "other")
        .select("moment", columns.ITEM, "neighbour", "similarity", "rank")
    )


def _count(rows: DataFrame, keys: list[str], moments: Sequence[int], name: str) -> DataFrame:
    """Counts the rows of each key before each moment, as (moment, keys..., name), in one pass over the rows."""
    before = [F.count_if(F.col("time") < moment).alias(f"m{index}") for index, moment in enumerate(moments)]
    unpivoted = F.explode(
        F.array(
            *(
                F.struct(F.lit(moment).alias("moment"), F.col(f"m{index}").alias(name))
                for index, moment in enumerate(moments)
            )
        )
    )
    return (
        rows.groupBy(*keys).agg(*before).select(*keys, unpivoted.alias("at")).select("at.moment", *keys, f"at.{name}")
    )


def run(spark: SparkSession, settings: Settings, *, moments: Sequence[int]) -> int:
    """Writes the neighbours as of each moment (ms); returns how many items have any as of the last one."""
    fields = ["event_id", "type", "event_time", columns.ITEM, "order_id"]
    table = (
        neighbours(read_shop_events(spark, settings, fields), moments=moments)
        .groupBy("moment", columns.ITEM)
        .agg(F.array_sort(F.collect_list(F.struct("rank", "neighbour", "similarity"))).alias("best"))
        .select(
            "moment",
            columns.ITEM,
            F.col("best.neighbour").alias(columns.NEIGHBOURS),
            F.col("best.similarity").alias(columns.SIMILARITIES),
        )
        .toArrow()
    )
    spark.catalog.clearCache()
    stamp = pa.timestamp("us", tz="UTC")
    for moment in moments:
        rows = table.filter(pc.equal(table["moment"], moment)).drop_columns(["moment"])
        rows = rows.append_column(
            columns.EVENT_TIMESTAMP, pa.array([moment * 1000] * rows.num_rows, pa.int64()).cast(stamp)
        ).append_column(columns.CREATED_TIMESTAMP, pa.array([datetime.now(UTC)] * rows.num_rows, stamp))
        write_table(settings.offline_dir / views.ITEM_NEIGHBOURS, f"as-of-{moment}", rows)
    return int(pc.sum(pc.equal(table["moment"], max(moments))).as_py() or 0)
