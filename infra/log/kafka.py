"""Keeps the event log in Apache Kafka: the adapter for many machines. It implements infra.log.client.EventLog.

A topic is created when it is first written to, as infra.topics and the settings say. Appends of all threads share one
idempotent producer, so that its own retries neither duplicate nor reorder records; a group's positions are Kafka's own.
Every wait has a limit. infra.log.kafka_consumers does the reading.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic

from infra import topics
from infra.log.client import (
    ALL_PARTITIONS,
    START,
    LogError,
    LogFullError,
    LogUnreachableError,
    PartitionShare,
    Position,
    Record,
    TopicSize,
    refuse_unusable,
)
from infra.log.kafka_consumers import Readers
from infra.log.kafka_groups import Committer
from infra.settings import Settings

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

DAY_MILLISECONDS = 86_400_000
DISK_FULL_ERRORS = {KafkaError.KAFKA_STORAGE_ERROR}

TRANSIENT_ERRORS = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.OFFSET_NOT_AVAILABLE, KafkaError._WAIT_COORD, KafkaError._TRANSPORT,
    KafkaError._DESTROY_BROKER,
}  # fmt: skip
"""Another broker takes over, or is still loading: ask again."""


class _Acknowledgements:
    """Waits until every record of one call is acknowledged or has failed."""

    def __init__(self, count: int) -> None:
        self._open = count
        self._lock = threading.Lock()
        self.done = threading.Event()
        self.error: KafkaError | None = None

    def on_delivery(self, error: KafkaError | None, message: Message) -> None:
        with self._lock:
            self.error = self.error or error
            self._open -= 1
            if not self._open:
                self.done.set()


class KafkaLog:
    """Implements infra.log.client.EventLog on Kafka."""

    def __init__(self, settings: Settings) -> None:
        if settings.kafka_bootstrap is None:
            raise LogError("HEADRACE_KAFKA_BOOTSTRAP is not set")
        self._servers = settings.kafka_bootstrap
        self._prefix = settings.kafka_topic_prefix
        self._settings = settings
        self._seconds = settings.kafka_timeout_seconds
        self._connection = connection(settings)
        # Only creates topics: docs/decisions/0008 says what its queries about groups may do.
        self._admin = AdminClient(dict(self._connection))
        self._metadata_client = Consumer(
            {**self._connection, "group.id": "headrace-metadata", "enable.auto.commit": False}
        )
        self._groups: dict[str, Committer] = {}
        self._partitions: dict[str, int] = {}
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._readers = Readers(self._connection)

    def append(self, topic: str, records: Sequence[tuple[str, bytes]]) -> None:
        if not records:
            return
        for key, value in records:
            refuse_unusable(key, value)
        deadline = time.monotonic() + self._seconds
        self.create_topic(topic)
        producer, acks, name = self._shared_producer(), _Acknowledgements(len(records)), self._prefix + topic
        for key, value in records:
            self._send(producer, name, key, value, acks, deadline)
        # The client gives up a little earlier by itself; this wait is only for a client that hangs.
        if not acks.done.wait(self._seconds + 1):
            raise self._unreachable("it acknowledged nothing")
        if acks.error is not None:
            self._raise_for(acks.error)

    def _send(
        self, producer: Producer, name: str, key: str, value: bytes, acks: _Acknowledgements, deadline: float
    ) -> None:
        while True:
            try:
                producer.produce(name, value, key.encode(), on_delivery=acks.on_delivery)
                return
            except BufferError as error:
                # The queue is full: the thread that polls makes room as acknowledgements come.
                if time.monotonic() > deadline:
                    raise self._unreachable("it takes records too slowly") from error
                time.sleep(0.005)
            except KafkaException as error:
                self._raise_for(error.args[0])

    def _raise_for(self, error: KafkaError) -> None:
        """Raises the error of the log that a failed append means to its caller."""
        if error.fatal():
            with self._lock:
                self._producer = None  # the next append creates a new one
        if error.code() in DISK_FULL_ERRORS:
            raise LogFullError(f"not stored: Kafka's disk refuses the write ({error.str()}); free space there")
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            raise LogError(f"a record is larger than Kafka takes: {error.str()}")
        raise self._unreachable(error.str())

    def _shared_producer(self) -> Producer:
        """Returns the one producer, started with the thread that delivers its acknowledgements."""
        with self._lock:
            if self._producer is None:
                self._producer = Producer(
                    {
                        **self._connection,
                        "enable.idempotence": True,
                        "acks": "all",
                        # The partitioner of Kafka's Java clients, so that a key has one partition whoever produces it.
                        "partitioner": "murmur2",
                        "linger.ms": 0,
                        "compression.type": "lz4",
                        "message.timeout.ms": int(self._seconds * 1000),
                        "request.timeout.ms": max(1, int(self._seconds * 1000)),
                    }
                )
                threading.Thread(target=_poll, args=(self._producer,), name="kafka-acks", daemon=True).start()
            return self._producer

    def read(
        self, topic: str, position: Position, *, max_records: int = 1_000, share: PartitionShare = ALL_PARTITIONS
    ) -> list[Record]:
        count = self._partition_count(topic)
        partitions = [partition for partition in range(count) if share.holds(partition)]
        if not partitions or max_records < 1:
            return []
        return self._readers.read(
            self._prefix + topic,
            {partition: position.offsets.get(partition, 0) for partition in partitions},
            max_records=max_records,
            ends=lambda: self._offsets(topic, OFFSET_END),
            seconds=self._seconds,
            unreachable=self._unreachable,
            topic=topic,
        )

    def end(self, topic: str) -> Position:
        return Position(self._offsets(topic, OFFSET_END))

    def latest(self, topic: str, count: int) -> list[Record]:
        end = self.end(topic)
        position = Position({partition: max(0, offset - count) for partition, offset in end.offsets.items()})
        latest: list[Record] = []
        while count and not position.covers(end):
            records = self.read(topic, position, max_records=10_000)
            if not records:
                break
            latest += records
            position = position.after(records)
        latest.sort(key=lambda record: (record.timestamp_ms, record.partition, record.offset))
        return latest[-count:] if count else []

    def size(self, topic: str) -> TopicSize:
        first, end = self._offsets(topic, OFFSET_BEGINNING), self._offsets(topic, OFFSET_END)
        return TopicSize(sum(end.values()) - sum(first.values()), whole=True, size_bytes=None)

    def committed(self, group: str, topic: str) -> Position:
        partitions = [TopicPartition(self._prefix + topic, number) for number in range(self._partition_count(topic))]
        if not partitions:
            return START
        consumer = self._group(group).consumer
        committed = self._retry(lambda: _checked(consumer.committed(partitions, timeout=self._seconds)))
        return Position({entry.partition: entry.offset for entry in committed if entry.offset >= 0})

    def commit(self, group: str, topic: str, position: Position) -> None:
        offsets = [TopicPartition(self._prefix + topic, *entry) for entry in position.offsets.items()]
        if offsets:
            self._retry(lambda: self._group(group).commit(offsets, seconds=self._seconds))

    def _group(self, group: str) -> Committer:
        with self._lock:
            if group not in self._groups:
                self._groups[group] = Committer(self._connection, self._prefix + group)
            return self._groups[group]

    def _partition_count(self, topic: str) -> int:
        """Returns the number of partitions, 0 for an unknown topic. Cached: a restart sees added partitions."""
        if topic not in self._partitions:
            name = self._prefix + topic
            cluster = self._retry(lambda: self._metadata_client.list_topics(name, timeout=self._seconds))
            metadata = cluster.topics.get(name)
            if metadata is None or metadata.error is not None:
                return 0
            self._partitions[topic] = len(metadata.partitions)
        return self._partitions[topic]

    def create_topic(self, topic: str) -> None:
        """Creates the topic unless it exists, with the partitions, replicas and retention of the settings."""
        if self._partition_count(topic):
            return
        settings, name = self._settings, self._prefix + topic
        keep = settings.kafka_retention_days if topic not in topics.KEPT_FOR_EVER else None
        new_topic = NewTopic(
            name,
            num_partitions=1 if topic in topics.IN_ONE_ORDER else settings.kafka_partitions,
            replication_factor=settings.kafka_replication,
            config={
                "cleanup.policy": "delete",
                "retention.ms": str(keep * DAY_MILLISECONDS if keep else -1),
                "retention.bytes": "-1",
                "min.insync.replicas": str(settings.kafka_replication // 2 + 1),
            },
        )
        creation: Future[Any] = self._admin.create_topics([new_topic], request_timeout=self._seconds)[name]
        try:
            creation.result(self._seconds + 1)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                if error.args[0].code() == KafkaError.INVALID_REPLICATION_FACTOR:
                    raise LogError(
                        f"Kafka cannot keep HEADRACE_KAFKA_REPLICATION={settings.kafka_replication} copies: "
                        f"{error.args[0].str()}"
                    ) from error
                raise self._unreachable(error.args[0].str()) from error
        deadline = time.monotonic() + self._seconds
        while not self._partition_count(topic):  # until the other brokers know of it
            if time.monotonic() > deadline:
                raise self._unreachable(f"the new topic {name} did not appear")
            time.sleep(0.02)

    def _offsets(self, topic: str, moment: int) -> dict[int, int]:
        """Returns the first (OFFSET_BEGINNING) or the next (OFFSET_END) offset of each partition."""
        name, count = self._prefix + topic, self._partition_count(topic)
        partitions = [TopicPartition(name, number, moment) for number in range(count)]
        if not partitions:
            return {}
        offsets = self._retry(
            lambda: _checked(self._metadata_client.offsets_for_times(partitions, timeout=self._seconds))
        )
        return {entry.partition: entry.offset for entry in offsets}

    def _retry(self, ask: Callable[[], Answer]) -> Answer:
        """Returns what Kafka answers; asks again after transient errors. Raises LogUnreachableError at the timeout."""
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                return ask()
            except KafkaException as failure:
                error = failure.args[0]
                if error.code() not in TRANSIENT_ERRORS or time.monotonic() > deadline:
                    raise self._unreachable(error.str()) from failure
            except TimeoutError as failure:
                raise self._unreachable("no answer in time") from failure
            time.sleep(0.05)

    def _unreachable(self, reason: str) -> LogUnreachableError:
        return LogUnreachableError(
            f"cannot reach Kafka at {self._servers} ({reason}); start it with `make up`, "
            "or unset HEADRACE_KAFKA_BOOTSTRAP for the log on files"
        )


def connection(settings: Settings) -> dict[str, Any]:
    """Returns the configuration that every client shares."""
    return {
        "bootstrap.servers": settings.kafka_bootstrap,
        "client.id": "headrace",
        "socket.timeout.ms": max(1_000, int(settings.kafka_timeout_seconds * 1000)),
        "socket.connection.setup.timeout.ms": max(1_000, int(settings.kafka_timeout_seconds * 1000)),
        # A broker that comes back is found again within a quarter of a second.
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 250,
        "allow.auto.create.topics": False,
        # Errors are reported by the calls that they occur in.
        "log_level": 0,
    }


def _checked(partitions: list[TopicPartition]) -> list[TopicPartition]:
    """Returns the answer, or raises KafkaException for the first partition that has an error."""
    for partition in partitions:
        if partition.error is not None:
            raise KafkaException(partition.error)
    return partitions


def _poll(producer: Producer) -> None:
    while True:
        producer.poll(1.0)
