"""Compares kafka-python with confluent-kafka on a real broker: acks=all, idempotent, records of 300 bytes.

    python -m infra.bench.kafka_clients 127.0.0.1:19092

Runs both, one after the other, on topics of their own, and prints records a second and CPU.
"""

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import confluent_kafka
import kafka
from confluent_kafka.admin import AdminClient, NewTopic

VALUE = b'{"pad": "' + b"x" * 289 + b'"}'
PARTITIONS = 6
SINGLES = 1_000
BATCHES = 200
BATCH = 100
CONSUMED = BATCHES * BATCH


def produce_confluent(servers: str, topic: str) -> Iterator[tuple[str, int]]:
    producer = confluent_kafka.Producer({"bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 0})

    def acknowledged(error: Any, _: Any) -> None:
        assert error is None, error

    def batch(size: int) -> None:
        for number in range(size):
            producer.produce(topic, VALUE, f"key-{number}", on_delivery=acknowledged)
        assert producer.flush(30) == 0

    yield from produce(batch)


def produce_python(servers: str, topic: str) -> Iterator[tuple[str, int]]:
    producer = kafka.KafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True, linger_ms=0)

    def batch(size: int) -> None:
        for future in [producer.send(topic, VALUE, f"key-{number}".encode()) for number in range(size)]:
            future.get(30)

    yield from produce(batch)
    producer.close()


def produce(batch: Callable[[int], None]) -> Iterator[tuple[str, int]]:
    """Yields (step, records) after each step; `batch` sends that many records and waits until they are acknowledged."""
    batch(1)
    yield "start", 1
    for _ in range(SINGLES):
        batch(1)
    yield "one by one", SINGLES
    for _ in range(BATCHES):
        batch(BATCH)
    yield "batches of 100", BATCHES * BATCH


def consume_confluent(servers: str, topic: str) -> Iterator[tuple[str, int]]:
    consumer = confluent_kafka.Consumer({"bootstrap.servers": servers, "group.id": uuid.uuid4().hex})
    consumer.assign([confluent_kafka.TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    read = 0
    while read < CONSUMED:
        read += len([message.value() for message in consumer.consume(1_000, 0.1)])
    yield "consume", read
    consumer.close()


def consume_python(servers: str, topic: str) -> Iterator[tuple[str, int]]:
    consumer = kafka.KafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
    partitions = [kafka.TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    read = 0
    while read < CONSUMED:
        polled = consumer.poll(timeout_ms=100, max_records=1_000)
        read += len([record.value for records in polled.values() for record in records])
    yield "consume", read
    consumer.close()


def measure(client: str, steps: Callable[[], Iterator[tuple[str, int]]]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    for step, count in steps():
        took, used = time.perf_counter() - wall, time.process_time() - cpu
        print(
            f"{client:16} {step:16} {count / took:10,.0f} records/s  {1e6 * used / count:8.0f} µs CPU each", flush=True
        )
        wall, cpu = time.perf_counter(), time.process_time()


def main(servers: str) -> None:
    admin = AdminClient({"bootstrap.servers": servers})
    for client, produce, consume in (
        (f"confluent {confluent_kafka.__version__}", produce_confluent, consume_confluent),
        (f"python {kafka.__version__}", produce_python, consume_python),
    ):
        topic = f"bench-{uuid.uuid4().hex}"
        admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result()
        try:
            measure(client, lambda run=produce, topic=topic: run(servers, topic))  # type: ignore[misc]
            measure(client, lambda run=consume, topic=topic: run(servers, topic))  # type: ignore[misc]
        finally:
            admin.delete_topics([topic])[topic].result()


if __name__ == "__main__":
    main(sys.argv[1])
