"""Joins exposures to outcomes: the table of units that an experiment's report reads.

It has a row per experiment, variation, unit and UTC day. Each run reads the whole history, so that late and repeated
events count correctly in any order of arrival. Knows neither statistics nor which variation is the control.
"""

from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from features.contract.columns import IMPRESSIONS, SHOP_EVENTS
from features.contract.events import ExperimentDefined
from features.contract.timestamps import DAY
from infra import topics
from infra.log.client import read_all
from infra.log.open import open_log
from infra.settings import Settings
from streaming.tables import write_table

UNITS_TABLE = "experiment_units"
HORIZON_DAYS = 30
"""A later outcome is not attributed to the impression."""

ROW = ("experiment", "variation", "unit", "day")
COUNTED = {
    "exposures": "bigint",
    "shown": "bigint",
    "conversions": "bigint",
    "value": "double",
    "returns": "bigint",
    "returned_value": "double",
    "purchases_after": "bigint",
    "spend_after": "double",
}
IMPRESSION_SCHEMA = """
    event_id string, event_time bigint, user_id string, session_id string,
    experiment string, variation string, items array<struct<item_id: string>>
"""
SHOP_SCHEMA = """
    event_id string, type string, event_time bigint, user_id string, session_id string,
    item_id string, quantity double, price double, request_id string
"""


def experiment_units(impressions: DataFrame, shop_events: DataFrame, *, by_session: Collection[str] = ()) -> DataFrame:
    """Joins impressions and outcomes by unit and day.

    Takes frames with (at least) the columns of IMPRESSION_SCHEMA and SHOP_SCHEMA; the experiments in `by_session`
    count sessions, the others users, and the other id stands in where that one is missing. Returns

        experiment, variation, unit string; day date (UTC)
        exposures, shown            bigint  impressions, and items in them
        conversions, value          bigint, double  purchases that name the impression and an item of it
        returns, returned_value     bigint, double  returns that do so
        purchases_after, spend_after  bigint, double  all purchases since the unit was first exposed to the variation

    A repeated event_id counts once. An outcome belongs to the day it happened, at most HORIZON_DAYS after its
    impression. There is no lower limit: an outcome that names a request came after it, whatever its clock says. A
    purchase without a price counts with value 0.
    """
    session_counts = F.col("experiment").isin(*by_session) if by_session else F.lit(False)
    exposures = (
        impressions.where("experiment is not null and variation is not null")
        # Counted here, so that only the join to outcomes carries the items through a shuffle.
        .withColumn("shown", F.when(F.col("items").isNotNull(), F.size("items")).otherwise(0))
        .withColumn("seen_items", F.col("items.item_id"))
        .dropDuplicates(["event_id"])
        .withColumn("by_session", session_counts)
        .withColumn("unit", F.when(F.col("by_session"), _session_unit()).otherwise(_user_unit()))
    )
    outcomes = (
        shop_events.where("type in ('purchase', 'return')")
        .dropDuplicates(["event_id"])
        .withColumn("amount", F.coalesce("price", F.lit(0.0)) * F.col("quantity"))
    )
    parts = (_shown(exposures), _attributed(exposures, outcomes), _after(exposures, outcomes))
    facts = parts[0]
    for part in parts[1:]:
        facts = facts.unionByName(part, allowMissingColumns=True)
    sums = [F.coalesce(F.sum(name), F.lit(0)).cast(sql_type).alias(name) for name, sql_type in COUNTED.items()]
    return facts.groupBy(*ROW).agg(*sums)


def _shown(exposures: DataFrame) -> DataFrame:
    return exposures.select("experiment", "variation", "unit", _day("event_time"), F.lit(1).alias("exposures"), "shown")


def _attributed(exposures: DataFrame, outcomes: DataFrame) -> DataFrame:
    """Attributes purchases and returns that name an impression and one of its items to the unit that saw it."""
    seen = exposures.select(
        "experiment",
        "variation",
        "unit",
        F.col("event_id").alias("request_id"),
        F.col("event_time").alias("seen_time"),
        "seen_items",
    )
    bought, returned = F.col("type") == "purchase", F.col("type") == "return"
    return (
        outcomes.join(seen, "request_id")
        .where(F.array_contains("seen_items", F.col("item_id")))
        .where(F.col("event_time") <= F.col("seen_time") + HORIZON_DAYS * DAY)
        .select(
            "experiment",
            "variation",
            "unit",
            _day("event_time"),
            F.when(bought, 1).alias("conversions"),
            F.when(bought, F.col("amount")).alias("value"),
            F.when(returned, 1).alias("returns"),
            F.when(returned, F.col("amount")).alias("returned_value"),
        )
    )


def _after(exposures: DataFrame, outcomes: DataFrame) -> DataFrame:
    """Selects every purchase of a unit from its first exposure on, of shown items or not."""
    first = exposures.groupBy("experiment", "variation", "unit", "by_session").agg(
        F.min("event_time").alias("first_time")
    )
    # Each purchase under both kinds of unit, so that the join stays an equality and Spark can hash it.
    units = F.array(
        F.struct(F.lit(False).alias("by_session"), _user_unit().alias("unit")),
        F.struct(F.lit(True).alias("by_session"), _session_unit().alias("unit")),
    )
    bought = outcomes.where("type = 'purchase'").select("event_time", "amount", F.inline(units))
    return (
        bought.join(first, ["by_session", "unit"])
        .where("event_time >= first_time")
        .select(
            "experiment",
            "variation",
            "unit",
            _day("event_time"),
            F.lit(1).alias("purchases_after"),
            F.col("amount").alias("spend_after"),
        )
    )


def _user_unit() -> Column:
    return F.coalesce("user_id", "session_id")


def _session_unit() -> Column:
    return F.coalesce("session_id", "user_id")


def _day(milliseconds: str) -> Column:
    """Returns the UTC date, whatever the session's time zone."""
    return F.date_from_unix_date(F.floor(F.col(milliseconds) / DAY).cast("int")).alias("day")


def run(spark: SparkSession, settings: Settings) -> int:
    """Replaces offline_dir/experiment_units.parquet and returns its number of rows.

    The file is replaced in one step: a reader sees the old table or the new one. The units fit into a file and into
    this process's memory.
    """
    impressions = _read(spark, settings.offline_dir / IMPRESSIONS, IMPRESSION_SCHEMA)
    # Most of the history lies before the first impression, where only events that name a request matter.
    first = impressions.agg(F.min("event_time")).first()
    since = first[0] if first is not None and first[0] is not None else 0
    units = experiment_units(
        impressions,
        _read(spark, settings.offline_dir / SHOP_EVENTS, SHOP_SCHEMA).where(
            (F.col("event_time") >= since) | F.col("request_id").isNotNull()
        ),
        by_session=_counted_by_session(settings),
    )
    table = units.toArrow().sort_by([(name, "ascending") for name in ROW])
    write_table(settings.offline_dir, UNITS_TABLE, table)
    rows: int = table.num_rows
    return rows


def _read(spark: SparkSession, folder: Path, schema: str) -> DataFrame:
    """Reads the Parquet files of a folder; no rows if there are none yet."""
    if not any(folder.glob("*.parquet")):
        return spark.createDataFrame([], schema)
    return spark.read.schema(schema).parquet(str(folder))


def _counted_by_session(settings: Settings) -> set[str]:
    """Returns the keys of the experiments whose unit is the session, by the last definition of each."""
    keys = set[str]()
    for record in read_all(open_log(settings), topics.EXPERIMENTS):
        try:
            event = ExperimentDefined.model_validate_json(record.value)
        except ValidationError:
            continue  # the service that reads definitions says so in its log
        (keys.add if event.definition.get("unit") == "session" else keys.discard)(event.experiment)
    return keys
