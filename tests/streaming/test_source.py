"""The log as a Spark source: every record once, over restarts and damage; and the schema of what stands in it."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import AwareDatetime, BaseModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DoubleType,
    IntegerType,
    StringType,
    StructType,
    TimestampType,
)

from features import events
from infra import processes, topics
from infra.log.client import START, open_log
from infra.log.files import FileLog
from infra.settings import Settings
from streaming import source
from streaming.session import open_session
from streaming.source import EVENT_SCHEMA, NEEDED, READ_TOPICS, RECORD_SCHEMA, LogReader, parse, reached, read_stream

READ = (
    events.ItemListed, events.ItemViewed, events.ItemAddedToCart, events.ItemPurchased, events.ItemReturned,
    events.Transaction, events.Label, events.Impression,
)  # fmt: skip
SPARK_TYPES: dict[object, DataType] = {
    str: StringType(), float: DoubleType(), int: IntegerType(), bool: BooleanType(),
    AwareDatetime: TimestampType(),
}  # fmt: skip
TIME = "2026-11-22T10:15:00.120Z"


def spark_type(annotation: object) -> DataType:
    """What a field of an event is in Spark."""
    kind, held = get_origin(annotation), [part for part in get_args(annotation) if part is not type(None)]
    if kind is tuple:
        return ArrayType(spark_type(held[0]))
    if kind is Literal:
        return SPARK_TYPES[type(held[0])]
    if kind is not None:  # Annotated, or a field that may be absent
        return spark_type(held[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        shape = StructType()
        for name, field in annotation.model_fields.items():
            shape.add(name, spark_type(field.annotation))
        return shape
    return SPARK_TYPES[annotation]


@pytest.mark.slow
def test_the_schema_is_the_union_of_the_events_that_are_read(spark: SparkSession) -> None:
    schema = spark.createDataFrame([], EVENT_SCHEMA).schema
    theirs = {name: spark_type(field.annotation) for model in READ for name, field in model.model_fields.items()}
    assert theirs.pop("schema_version") == IntegerType()  # there is one version so far
    assert theirs.pop("scored") == BooleanType()  # the stream folds a payment whoever scored it
    assert theirs.pop("http_request_id") == StringType()  # whose call it was is for the alert desk
    assert {field.name: field.dataType for field in schema} == theirs


def test_every_event_of_the_topics_that_are_read_is_known_with_fields_that_exist() -> None:
    kinds = {kind for kinds, _ in NEEDED for kind in kinds}
    assert kinds == {kind for kind, topic in events.TOPIC_OF.items() if topic in READ_TOPICS}
    by_kind = {get_args(model.model_fields["type"].annotation)[0]: model for model in READ}
    for kinds_of, fields in NEEDED:
        assert all(by_kind[kind].model_fields[field].is_required() for kind in kinds_of for field in fields)


def number(value: int, kind: str = "view") -> bytes:
    event = {"type": kind, "event_id": f"e{value}", "event_time": TIME, "user_id": "u", "item_id": "i"}
    return json.dumps(event).encode()


def fill(log: FileLog, *topic_names: str, start: int = 0, count: int = 10) -> None:
    for topic in topic_names:
        log.append(topic, [("u", number(value)) for value in range(start, start + count)])


def reader(folder: Path, *topic_names: str, max_bytes: int = 10**9) -> LogReader:
    return LogReader(str(folder), list(topic_names), max_bytes)


def read_all(one: LogReader, start: dict[str, int], end: dict[str, int]) -> list[tuple[str, int]]:
    return [
        (topic, offset)
        for part in one.partitions(start, end)
        for batch in one.read(part)
        for topic, offset in zip(batch["topic"].to_pylist(), batch["offset"].to_pylist(), strict=True)
    ]


@pytest.mark.parametrize("max_bytes", [1, 200, 1000, 10**9])
@pytest.mark.parametrize("partition_bytes", [1, 150, 10**9])
def test_batches_and_partitions_cut_the_log_without_loss_or_double(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_bytes: int, partition_bytes: int
) -> None:
    monkeypatch.setattr(source, "PARTITION_BYTES", partition_bytes)
    monkeypatch.setattr(source, "BATCH_ROWS", 3)
    log = FileLog(tmp_path, segment_bytes=400)
    fill(log, "a", "b")
    one, seen = reader(tmp_path, "a", "b", "empty", max_bytes=max_bytes), []
    position = one.initialOffset()
    for _ in range(100):
        end = one.latestOffset(position, None)
        if end == position:
            break
        seen += read_all(one, position, end)
        position = end
    assert seen == [(topic, record.offset) for topic in ("a", "b") for record in log.read(topic, START)]
    assert position == {"a": log.end_offset("a"), "b": log.end_offset("b"), "empty": 0}
    fill(log, "a", start=10, count=1)
    assert one.latestOffset({"a": log.end_offset("a")}, None)["a"] == log.end_offset("a")


def test_damage_is_passed_over_and_a_lost_end_does_not_hang(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = FileLog(tmp_path)
    fill(log, "a", count=3)
    first, second, third = log.read("a", START)
    planned = {"a": log.end_offset("a")}
    (segment,) = (tmp_path / "a").glob("*.log")
    with segment.open("r+b") as file:
        file.seek(second.offset)
        file.write(b"damaged")
        file.truncate(third.offset + 20)
    one = reader(tmp_path, "a")
    assert read_all(one, {"a": 0}, planned) == [("a", first.offset)]
    assert one.latestOffset(planned, None) == planned
    assert f"skipped a damaged record in a at offset {second.offset}" in caplog.text


@pytest.mark.slow
def test_a_query_that_starts_again_goes_on_where_it_was(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path, stream_batch_records=3)
    log = FileLog(settings.log_dir)
    seen: dict[int, list[tuple[str, int]]] = {}
    broken = True

    def handle(records: DataFrame, batch: int) -> None:
        if broken and batch == 1:
            raise ValueError("the process dies here")
        seen[batch] = [(row.topic, row.offset) for row in records.collect()]

    def run() -> None:
        query = (
            read_stream(spark, settings)
            .writeStream.foreachBatch(handle)
            .option("checkpointLocation", str(tmp_path / "checkpoint"))
            .start()
        )
        try:
            query.processAllAvailable()
        finally:
            query.stop()

    fill(log, topics.SHOP, topics.LABELS)
    with pytest.raises(Exception, match="the process dies here"):
        run()
    assert list(seen) == [0]
    assert {topic for topic, _ in seen[0]} == {topics.LABELS}  # labels come first
    broken = False
    run()
    run()
    fill(log, topics.SHOP, start=10, count=5)
    run()
    read = [pair for batch in sorted(seen) for pair in seen[batch]]
    expected = [(topic, record.offset) for topic in (topics.LABELS, topics.SHOP) for record in log.read(topic, START)]
    assert sorted(read) == sorted(expected)
    assert len(seen) > 3


RECORDS: dict[str, tuple[Any, str | None]] = {
    "good": ({"type": "view", "item_id": "i"}, None),
    "half": ('{"type": "view", "event_id"', "unknown type"),
    "no object": ("[1, 2]", "unknown type"),
    "nothing": ("", "unknown type"),
    "other type": ({"type": "refund"}, "unknown type"),
    "not read": ({"type": "decision"}, "unknown type"),
    "no id": ({"type": "view", "item_id": "i", "event_id": None}, "no event_id or event_time"),
    "no time": ({"type": "view", "item_id": "i", "event_time": "yesterday"}, "no event_id or event_time"),
    "no item": ({"type": "purchase"}, "no item_id"),
    "no card": ({"type": "transaction", "terminal_id": "t", "amount": 1}, "no card_id"),
    "no amount": ({"type": "transaction", "terminal_id": "t", "card_id": "c"}, "no amount"),
    "no fraud": ({"type": "label", "transaction_id": "x"}, "no fraud"),
    "no items": ({"type": "impression", "surface": "home"}, "no items"),
    "offset of time": ({"type": "view", "item_id": "i", "event_time": "2026-11-22T11:15:00.120+01:00"}, None),
}


@pytest.mark.slow
def test_records_are_told_from_events_with_a_reason(spark: SparkSession) -> None:
    common = {"event_id": "e", "event_time": TIME}
    values = [value if isinstance(value, str) else json.dumps({**common, **value}) for value, _ in RECORDS.values()]
    rows = [("t", 0, offset, "k", value, 0) for offset, value in enumerate(values)]
    parsed = parse(spark.createDataFrame(rows, RECORD_SCHEMA)).collect()
    assert {name: row.reason for name, row in zip(RECORDS, parsed, strict=True)} == {
        name: reason for name, (_, reason) in RECORDS.items()
    }
    assert [row.value for row in parsed] == [None if row.reason is None else values[row.offset] for row in parsed]
    good = [row for row in parsed if row.reason is None]
    assert {row.event_time for row in good} == {events.milliseconds(datetime.fromisoformat(TIME))}


def gather(spark: SparkSession, settings: Settings, folder: Path) -> list[list[Any]]:
    """The parsed rows of each micro-batch, without their places and append times, which differ between logs."""
    batches: list[list[Any]] = []

    def handle(records: DataFrame, batch: int) -> None:
        assert records.schema == spark.createDataFrame([], RECORD_SCHEMA).schema
        batches.append(sorted(map(str, parse(records).drop("partition", "offset", "timestamp").collect())))

    query = (
        read_stream(spark, settings).writeStream.foreachBatch(handle).option("checkpointLocation", str(folder)).start()
    )
    try:
        query.processAllAvailable()
        progress = query.lastProgress
        places = [reached(one["endOffset"], prefix=settings.kafka_topic_prefix) for one in progress["sources"]]
        ends = {topic: position for place in places for topic, position in place.items()}
        assert ends == {topic: open_log(settings).end(topic) for topic in READ_TOPICS}
    finally:
        query.stop()
    return batches


@pytest.mark.slow
def test_kafka_gives_what_the_files_give(kafka_settings: Settings, tmp_path: Path) -> None:
    """Over the real connector, in a Spark of its own, because jars are loaded when it starts."""
    script = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"{__file__}::test_in_a_spark_with_kafka"]
    environment = {**processes.environment(kafka_settings), "HEADRACE_TEST_KAFKA": "yes"}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=200)
    assert "1 passed" in done.stdout, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.skipif("HEADRACE_TEST_KAFKA" not in os.environ, reason="runs inside the test above")
def test_in_a_spark_with_kafka(tmp_path: Path) -> None:
    on_kafka = Settings()
    on_files = Settings(data_dir=tmp_path / "files", kafka_bootstrap=None, stream_batch_records=3)
    made = [
        (topics.SHOP, [("u", number(value)) for value in range(30)] + [("odd", b"{half"), ("", b"[]")]),
        (topics.LABELS, [(f"c{one}", f'{{"type": "label", "event_id": "l{one}"}}'.encode()) for one in range(9)]),
    ]
    for settings in (on_kafka, on_files):
        for topic, records in made:
            open_log(settings).append(topic, records)
    spark = open_session(on_kafka.model_copy(update={"spark_driver_memory": "1g"}), app="test")
    try:
        limited = on_kafka.model_copy(update={"stream_batch_records": 4})
        kafka = gather(spark, limited, tmp_path / "kafka-checkpoint")
        files = gather(spark, on_files, tmp_path / "files-checkpoint")
    finally:
        spark.stop()
    assert sorted(row for batch in kafka for row in batch) == sorted(row for batch in files for row in batch)
    assert len(kafka) > 4
    assert sum(topics.LABELS in row for row in kafka[0]) == 9  # however few records a micro-batch may have
