"""Reads the event log as a Spark streaming source.

The columns are those of Spark's Kafka source (topic, partition, offset, key, value, timestamp), so that the jobs do not
know which log they read. Spark's checkpoint keeps the offsets.
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
from infra.log.open import make_topic

if TYPE_CHECKING:  # Spark's Python workers import this module and need no settings
    from infra.settings import Settings

FORMAT = "headrace_log"
READ_TOPICS = (topics.LABELS, topics.TRANSACTIONS, topics.SHOP, topics.IMPRESSIONS)
"""Labels first: a payment is scored with the frauds that were known by then, also when the job catches up."""
RECORD_SCHEMA = "topic string, partition int, offset bigint, key string, value string, timestamp bigint"
BATCH_ROWS = 20_000
PARTITION_BYTES = 8 * 2**20
POLL_RECORDS = 20_000
BYTES_PER_RECORD = 300
"""Assumed size of a record for the limit of a micro-batch: offsets of the file log are bytes."""


class LogRange(InputPartition):
    """A part of a topic: the lines that start in [start, end)."""

    def __init__(self, topic: str, start: int, end: int) -> None:
        self.topic = topic
        self.start = start
        self.end = end


class LogReader(DataSourceStreamReader):
    """Plans and reads micro-batches of at most `max_bytes` from the file log."""

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
    """Registers the file log with Spark under FORMAT."""

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
    """Returns the records of READ_TOPICS as a streaming DataFrame of RECORD_SCHEMA, from the log of the settings."""
    if settings.kafka_bootstrap is not None:
        return _read_kafka(spark, settings)
    spark.dataSource.register(LogSource)
    return (
        spark.readStream.format(FORMAT)
        .option("folder", str(settings.log_dir.absolute()))
        .option("topics", ",".join(READ_TOPICS))
        .option("maxBytes", str(settings.stream_batch_records * BYTES_PER_RECORD))
        .load()
    )


def _read_kafka(spark: SparkSession, settings: Settings) -> DataFrame:
    """Reads with two of Spark's Kafka sources: the limit of a source applies to its topics in proportion to their
    backlog.

    Labels are few and have no limit. So each micro-batch holds every label that was there when it was planned, and no
    payment of it or of a later one gets features without a fraud that was known by then.
    """
    for topic in READ_TOPICS:  # the source fails on a topic that does not exist yet
        make_topic(settings, topic)
    labels = _kafka_records(spark, settings, [topics.LABELS], limit=None)
    others = [topic for topic in READ_TOPICS if topic != topics.LABELS]
    return labels.unionByName(_kafka_records(spark, settings, others, limit=settings.stream_batch_records))


def _kafka_records(spark: SparkSession, settings: Settings, names: list[str], *, limit: int | None) -> DataFrame:
    source = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", settings.kafka_bootstrap)
        .option("subscribe", ",".join(settings.kafka_topic_prefix + name for name in names))
        .option("startingOffsets", "earliest")
        # Records that were dropped before the job read them leave a gap in the features: stop and say so.
        .option("failOnDataLoss", "true")
        # The defaults suit many small polls; these consumers read a backlog.
        .option("kafka.max.poll.records", POLL_RECORDS)
        .option("kafka.max.partition.fetch.bytes", PARTITION_BYTES)
    )
    if limit is not None:
        source = source.option("maxOffsetsPerTrigger", limit)
    return source.load().select(
        F.substring("topic", len(settings.kafka_topic_prefix) + 1, 249).alias("topic"),
        "partition",
        "offset",
        F.col("key").cast("string"),
        F.col("value").cast("string"),
        F.unix_millis("timestamp").alias("timestamp"),
    )


def reached(end_offset: str, *, prefix: str = "") -> dict[str, Position]:
    """Returns how far a query has read each topic, from the end offset in its progress.

    >>> reached('{"labels": 40}'), reached('{"a-labels": {"0": 3, "1": 5}}', prefix="a-")
    ({'labels': Position(offsets={0: 40})}, {'labels': Position(offsets={0: 3, 1: 5})})
    """
    positions = {}
    for topic, end in json.loads(end_offset).items():
        # The files have one partition; Spark's Kafka source names each.
        offsets = {int(key): offset for key, offset in end.items()} if isinstance(end, dict) else {PARTITION: end}
        positions[topic.removeprefix(prefix)] = Position(offsets)
    return positions
