"""The event log as a Spark streaming source, and the schema of what stands in it.

The columns are those of Spark's Kafka source (topic, partition, offset, key, value, timestamp), so that the jobs do
not know which log they read. Offsets are kept by Spark's checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.datasource import DataSource, DataSourceStreamReader, InputPartition

from infra import topics
from infra.log.client import Position
from infra.log.files import PARTITION, FileLog

if TYPE_CHECKING:  # Spark starts several Python workers that import this module, and need no settings
    from infra.settings import Settings

FORMAT = "headrace_log"
READ_TOPICS = (topics.LABELS, topics.TRANSACTIONS, topics.SHOP, topics.IMPRESSIONS)
"""Labels first: a payment is scored with the frauds that were known by then, and catching up must not change that."""
RECORD_SCHEMA = "topic string, partition int, offset bigint, key string, value string, timestamp bigint"
BATCH_ROWS = 20_000
PARTITION_BYTES = 8 * 2**20
BYTES_PER_RECORD = 300
"""What one record is taken to need when a micro-batch is limited: offsets of the file log are bytes."""

EVENT_SCHEMA = """
    type string, event_id string, event_time timestamp, user_id string, session_id string, item_id string,
    quantity double, price double, order_id string, request_id string, title string, category string,
    card_id string, terminal_id string, amount double, channel string,
    transaction_id string, fraud boolean, transaction_time timestamp,
    surface string, model string, experiment string, variation string, bucket int, degraded boolean,
    items array<struct<item_id: string, position: int, score: double, source: string, propensity: double>>
"""
"""Union of the fields of the events that the jobs read (features/events.py; a test compares the two)."""

NEEDED = (
    (("item", "view", "cart", "purchase", "return"), ("item_id",)),
    (("transaction",), ("card_id", "terminal_id", "amount")),
    (("label",), ("transaction_id", "fraud")),
    (("impression",), ("surface", "items")),
)
"""Event types that the jobs read, and the fields without which they cannot be used."""


class LogRange(InputPartition):
    """Part of a topic: whole lines that start in [start, end)."""

    def __init__(self, topic: str, start: int, end: int) -> None:
        self.topic = topic
        self.start = start
        self.end = end


class LogReader(DataSourceStreamReader):
    def __init__(self, folder: str, topic_names: list[str], max_bytes: int) -> None:
        self._folder = folder
        self._topics = topic_names
        self._max_bytes = max_bytes
        self._position: dict[str, int] | None = None

    def initialOffset(self) -> dict[str, int]:
        return dict.fromkeys(self._topics, 0)

    def latestOffset(self, start: dict[str, int], limit: object) -> dict[str, int]:
        log = FileLog(Path(self._folder))
        room = self._max_bytes
        latest = {}
        for topic in self._topics:
            begin, end = start.get(topic, 0), log.end_offset(topic)
            if end - begin > room:
                end = log.align(topic, begin + room) if room else begin
            latest[topic] = max(begin, end)
            room = max(0, room - (latest[topic] - begin))
        return latest

    def partitions(self, start: dict[str, int], end: dict[str, int]) -> list[LogRange]:
        log, ranges = FileLog(Path(self._folder)), []
        for topic in self._topics:
            begin = start.get(topic, 0)
            while begin < end[topic]:
                cut = min(end[topic], log.align(topic, begin + PARTITION_BYTES))
                if cut <= begin:  # the log lost its end since these offsets were planned
                    break
                ranges.append(LogRange(topic, begin, cut))
                begin = cut
        return ranges

    def read(self, partition: LogRange) -> Iterator[pa.RecordBatch]:
        log = FileLog(Path(self._folder))
        rows: list[tuple[str, int, str, str, int]] = []
        for record in log.records(partition.topic, partition.start, partition.end):
            value = record.value.decode("utf-8", "replace")
            rows.append((record.topic, record.offset, record.key, value, record.timestamp_ms))
            if len(rows) == BATCH_ROWS:
                yield _to_batch(rows)
                rows = []
        if rows:
            yield _to_batch(rows)

    def commit(self, end: dict[str, int]) -> None:
        pass


class LogSource(DataSource):
    @classmethod
    def name(cls) -> str:
        return FORMAT

    def schema(self) -> str:
        return RECORD_SCHEMA

    def streamReader(self, schema: object) -> LogReader:
        return LogReader(self.options["folder"], self.options["topics"].split(","), int(self.options["maxBytes"]))


def _to_batch(rows: list[tuple[str, int, str, str, int]]) -> pa.RecordBatch:
    topic, offset, key, value, timestamp = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays(
        [
            pa.array(topic, pa.string()), pa.array([PARTITION] * len(rows), pa.int32()),
            pa.array(offset, pa.int64()), pa.array(key, pa.string()),
            pa.array(value, pa.string()), pa.array(timestamp, pa.int64()),
        ],
        names=["topic", "partition", "offset", "key", "value", "timestamp"],
    )  # fmt: skip


def read_stream(spark: SparkSession, settings: Settings) -> DataFrame:
    """The records of READ_TOPICS as an endless DataFrame of RECORD_SCHEMA."""
    spark.dataSource.register(LogSource)
    return (
        spark.readStream.format(FORMAT)
        .option("folder", str(settings.log_dir.absolute()))
        .option("topics", ",".join(READ_TOPICS))
        .option("maxBytes", str(settings.stream_batch_records * BYTES_PER_RECORD))
        .load()
    )


def reached(end_offset: str) -> dict[str, Position]:
    """How far a query has read each topic, from the end offset in its progress."""
    return {topic: Position({PARTITION: offset}) for topic, offset in json.loads(end_offset).items()}


def parse(records: DataFrame) -> DataFrame:
    """RECORD_SCHEMA to (topic, partition, offset, value, timestamp, event fields..., times in int64 ms).

    `value` is kept only for a record that cannot be an event of its topic: then `reason` says why.
    """
    parsed = records.withColumn("event", F.from_json("value", EVENT_SCHEMA)).select(
        "topic", "partition", "offset", "value", "timestamp", "event.*"
    )
    missing = F.when(F.col("event_id").isNull() | F.col("event_time").isNull(), F.lit("no event_id or event_time"))
    for kinds, needed in NEEDED:
        for column in needed:
            missing = missing.when(F.col("type").isin(*kinds) & F.col(column).isNull(), F.lit(f"no {column}"))
    known = [kind for kinds, _ in NEEDED for kind in kinds]
    reason = F.when(F.col("type").isNull() | ~F.col("type").isin(*known), F.lit("unknown type")).otherwise(missing)
    return parsed.withColumns(
        {
            "reason": reason,
            "value": F.when(reason.isNotNull(), F.col("value")),
            "event_time": F.unix_millis("event_time"),
            "transaction_time": F.unix_millis("transaction_time"),
        }
    )
