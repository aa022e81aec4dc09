"""What is special to the log on Kafka: servers that go away and come back, and how soon a record is read."""

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import topics
from infra.local import kafka_broker, processes
from infra.log.client import START, EventLog, LogUnreachableError, Position, Record, follow
from infra.log.open import open_log
from infra.settings import Settings

pytestmark = pytest.mark.slow


def everything(log: EventLog, topic: str = "t") -> list[Record]:
    records_read: list[Record] = []
    position = START
    while not position.covers(log.end(topic)):
        records = log.read(topic, position)
        records_read, position = records_read + records, position.after(records)
    return records_read


def answers(call: Callable[[], object]) -> bool:
    try:
        call()
    except LogUnreachableError:
        return False
    return True


@pytest.fixture
def own(
    kafka_tools: None, kafka_port: Callable[[], int], tmp_path: Path
) -> Iterator[tuple[Settings, list[kafka_broker.Node]]]:
    """Starts a broker of the test's own, to stop and start; yields settings whose log is on it."""
    nodes = kafka_broker.plan(kafka_port())
    settings = Settings(
        data_dir=tmp_path, kafka_bootstrap=kafka_broker.bootstrap(nodes), kafka_partitions=2, kafka_timeout_seconds=1.5
    )
    try:
        kafka_broker.start(settings, nodes)
        yield settings, nodes
    finally:
        processes.stop_all(settings)


def test_a_broker_that_is_away_is_reported_in_time_and_reached_again(
    own: tuple[Settings, list[kafka_broker.Node]],
) -> None:
    settings, nodes = own
    open_log(settings.model_copy(update={"kafka_timeout_seconds": 20.0})).append("t", [("a", b'{"n": 0}')])
    log = open_log(settings)
    assert processes.wait_until(lambda: answers(lambda: log.append("t", [("a", b'{"n": 0}')])), seconds=20)
    log.commit("readers", "t", log.end("t"))
    before = everything(log)
    followed, stop = [], threading.Event()

    def read() -> None:
        for records in follow(log, "t", START, stop=stop):
            followed.extend(records)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    processes.stop_all(settings)

    calls: list[Callable[[], Any]] = [
        lambda: log.append("t", [("a", b'{"n": 1}')]),
        lambda: log.append("new", [("a", b"{}")]),
        lambda: log.read("t", log_end),
        lambda: log.end("t"),
        lambda: log.committed("readers", "t"),
        lambda: log.commit("readers", "t", log_end),
        lambda: open_log(settings).append("t", [("a", b"{}")]),
        lambda: open_log(settings).end("t"),
    ]
    log_end = START.after(before)
    for call in calls:
        started = time.monotonic()
        with pytest.raises(LogUnreachableError, match=r"cannot reach Kafka at 127.0.0.1:\d+ .*make up"):
            call()
        assert time.monotonic() - started < settings.kafka_timeout_seconds + 2

    kafka_broker.start(settings, nodes)
    assert processes.wait_until(lambda: answers(lambda: log.append("t", [("a", b'{"n": 2}')])), seconds=10)
    assert processes.wait_until(lambda: answers(lambda: log.committed("readers", "t")), seconds=10)
    assert log.committed("readers", "t") == START.after(before)  # the same object survives the restart
    values = [record.value for record in everything(log)]
    assert values[0] == b'{"n": 0}'
    assert b'{"n": 2}' in values
    assert processes.wait_until(lambda: len(followed) >= len(values), seconds=10)
    stop.set()
    reader.join(10)
    assert [record.value for record in followed] == values


def test_the_producer_retries_without_duplicates(own: tuple[Settings, list[kafka_broker.Node]]) -> None:
    """The broker pauses and acknowledges too late, so the producer sends again: each record is stored once."""
    settings, _ = own
    patient = settings.model_copy(update={"kafka_timeout_seconds": 20.0})
    log = open_log(patient)
    log.append("t", [("a", b'{"n": 0}')])
    process = processes.alive(settings)["kafka-1"]
    stop, written = threading.Event(), []

    def write(name: int) -> None:
        number = 0
        while not stop.is_set():
            value = b'{"name": %d, "n": %d}' % (name, number)
            log.append("t", [(str(name), value)])
            written.append(value)
            number += 1

    writers = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for writer in writers:
        writer.start()
    for _ in range(3):
        time.sleep(0.4)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.6)
        os.kill(process.pid, signal.SIGCONT)
    stop.set()
    for writer in writers:
        writer.join(30)
    values = [record.value for record in everything(log) if record.key != "a"]
    assert sorted(values) == sorted(written)
    assert len(written) > 20


def test_a_record_is_read_within_milliseconds_of_its_append(kafka_settings: Settings) -> None:
    log, stop, took = open_log(kafka_settings), threading.Event(), list[float]()
    log.append(topics.TRANSACTIONS, [("c", b'{"sent": 0}')])

    def read() -> None:
        for records in follow(open_log(kafka_settings), topics.TRANSACTIONS, START, stop=stop):
            now = time.time()
            took.extend(now - float(record.value[9:-1]) for record in records if record.value != b'{"sent": 0}')

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    for number in range(60):
        log.append(topics.TRANSACTIONS, [(f"card-{number}", b'{"sent": %f}' % time.time())])
        time.sleep(0.02)
    assert processes.wait_until(lambda: len(took) == 60, seconds=10)
    stop.set()
    reader.join(10)
    print(f"median {statistics.median(took) * 1000:.1f} ms, p90 {sorted(took)[53] * 1000:.1f} ms")
    assert statistics.median(took) < 0.1


def test_a_position_beyond_the_end_reads_nothing(kafka_settings: Settings) -> None:
    log = open_log(kafka_settings)
    log.append("t", [("a", b"{}")])
    beyond = Position({partition: offset + 5 for partition, offset in log.end("t").offsets.items()})
    assert [record.partition for record in log.read("t", beyond)] == []


def test_topics_have_the_partitions_and_the_retention_that_they_need(kafka_settings: Settings) -> None:
    from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

    settings = kafka_settings.model_copy(update={"kafka_retention_days": 7})
    log = open_log(settings)
    for topic in (topics.SHOP, topics.EXPERIMENTS):
        log.append(topic, [("k", b"{}")])
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap})
    names = {topic: settings.kafka_topic_prefix + topic for topic in (topics.SHOP, topics.EXPERIMENTS)}
    listed = admin.list_topics(timeout=5).topics
    assert (len(listed[names[topics.SHOP]].partitions), len(listed[names[topics.EXPERIMENTS]].partitions)) == (3, 1)
    kept = {}
    for topic, name in names.items():
        resource = ConfigResource(ResourceType.TOPIC, name)
        config = admin.describe_configs([resource])[resource].result(5)
        kept[topic] = (config["retention.ms"].value, config["cleanup.policy"].value)
    assert kept == {topics.SHOP: (str(7 * 86_400_000), "delete"), topics.EXPERIMENTS: ("-1", "delete")}
