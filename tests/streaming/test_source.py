"""The log as a Spark source: every record once, over restarts and damage."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from infra import topics
from infra.local import processes
from infra.log.client import START
from infra.log.files import FileLog
from infra.log.open import open_log
from infra.settings import Settings
from streaming import source
from streaming.parsing import parse
from streaming.session import open_session
from streaming.source import READ_TOPICS, RECORD_SCHEMA, LogReader, reached, read_stream

TIME = "2026-11-22T10:15:00.120Z"


def number(value: int, kind: str = "view") -> bytes:
    event = {"type": kind, "event_id": f"e{value}", "event_time": TIME, "user_id": "u", "item_id": "i"}
    return json.dumps(event).encode()


def fill(log: FileLog, *topic_names: str, start: int = 0, count: int = 10) -> None:
    for topic in topic_names:
        log.append(topic, [("u", number(value)) for value in range(start, start + count)])


def reader(folder: Path, *topic_names: str, max_bytes: int = 10**9) -> LogReader:
    return LogReader(str(folder), list(topic_names), max_bytes)


def read_all(log_reader: LogReader, start: dict[str, int], end: dict[str, int]) -> list[tuple[str, int]]:
    return [
        (topic, offset)
        for part in log_reader.partitions(start, end)
        for batch in log_reader.read(part)
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
    log_reader, seen = reader(tmp_path, "a", "b", "empty", max_bytes=max_bytes), []
    position = log_reader.initialOffset()
    for _ in range(100):
        end = log_reader.latestOffset(position, None)
        if end == position:
            break
        seen += read_all(log_reader, position, end)
        position = end
    assert seen == [(topic, record.offset) for topic in ("a", "b") for record in log.read(topic, START)]
    assert position == {"a": log.end_offset("a"), "b": log.end_offset("b"), "empty": 0}
    fill(log, "a", start=10, count=1)
    assert log_reader.latestOffset({"a": log.end_offset("a")}, None)["a"] == log.end_offset("a")


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
    log_reader = reader(tmp_path, "a")
    assert read_all(log_reader, {"a": 0}, planned) == [("a", first.offset)]
    assert log_reader.latestOffset(planned, None) == planned
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


def gather(spark: SparkSession, settings: Settings, folder: Path) -> list[list[Any]]:
    """The parsed rows of each micro-batch, without their places and append times, which differ between logs."""
    batches: list[list[Any]] = []

    def handle(records: DataFrame, batch: int) -> None:
        assert records.schema == spark.createDataFrame([], RECORD_SCHEMA).schema
        rows = parse(records.toArrow()).drop_columns(["partition", "offset", "timestamp"])
        batches.append(sorted(map(str, rows.to_pylist())))

    query = (
        read_stream(spark, settings).writeStream.foreachBatch(handle).option("checkpointLocation", str(folder)).start()
    )
    try:
        query.processAllAvailable()
        progress = query.lastProgress
        positions = [reached(source["endOffset"], prefix=settings.kafka_topic_prefix) for source in progress["sources"]]
        ends = {topic: position for reached_positions in positions for topic, position in reached_positions.items()}
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
    written = [
        (topics.SHOP, [("u", number(value)) for value in range(30)] + [("odd", b"{half"), ("", b"[]")]),
        (
            topics.LABELS,
            [(f"c{number}", f'{{"type": "label", "event_id": "l{number}"}}'.encode()) for number in range(9)],
        ),
    ]
    for settings in (on_kafka, on_files):
        for topic, records in written:
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
