"""The event log on Apache Kafka: the adapter for many machines. See infra.log.client.EventLog for the promises.

Topics are made when they are first written to, as infra.topics and the settings say. Appends of all threads share one
idempotent producer, so that its own retries neither double nor reorder; a group's positions are Kafka's own. Every wait
has an end. What reads (consumers that go on where they were) is in infra.log.kafka_consumers.
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

T = TypeVar("T")

DAY_MILLISECONDS = 86_400_000
FULL = {KafkaError.KAFKA_STORAGE_ERROR}

SETTLING = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.OFFSET_NOT_AVAILABLE, KafkaError._WAIT_COORD, KafkaError._TRANSPORT,
    KafkaError._DESTROY_BROKER,
}  # fmt: skip
"""Another broker takes over, or reads in what it has: ask again."""


class _Acks:
    """Waits until every record of one call is acknowledged or given up."""

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
    def __init__(self, settings: Settings) -> None:
        if settings.kafka_bootstrap is None:
            raise LogError("HEADRACE_KAFKA_BOOTSTRAP is not set")
        self._servers = settings.kafka_bootstrap
        self._prefix = settings.kafka_topic_prefix
        self._settings = settings
        self._seconds = settings.kafka_timeout_seconds
        self._connection = connection(settings)
        # It makes topics and no more: see docs/decisions/0008 for what its questions about groups may do.
        self._admin = AdminClient(dict(self._connection))
        self._asker = Consumer({**self._connection, "group.id": "headrace-asker", "enable.auto.commit": False})
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
        self.make(topic)
        producer, acks, name = self._appending(), _Acks(len(records)), self._prefix + topic
        for key, value in records:
            self._send(producer, name, key, value, acks, deadline)
        # Kafka gives up by itself a little before; this wait is only for a client that got stuck.
        if not acks.done.wait(self._seconds + 1):
            raise self._unreachable("it acknowledged nothing")
        if acks.error is not None:
            self._refuse(acks.error)

    def _send(self, producer: Producer, name: str, key: str, value: bytes, acks: _Acks, deadline: float) -> None:
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
                self._refuse(error.args[0])

    def _refuse(self, error: KafkaError) -> None:
        """Raise what an append's failure is to its caller."""
        if error.fatal():
            with self._lock:
                self._producer = None  # the next append has a new one
        if error.code() in FULL:
            raise LogFullError(f"not stored: Kafka's disk refuses the write ({error.str()}); free space there")
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            raise LogError(f"a record is larger than Kafka takes: {error.str()}")
        raise self._unreachable(error.str())

    def _appending(self) -> Producer:
        """The one producer, and the thread that hands its acknowledgements out."""
        with self._lock:
            if self._producer is None:
                self._producer = Producer(
                    {
                        **self._connection,
                        "enable.idempotence": True,
                        "acks": "all",
                        # As Kafka's own clients place a key, and one place for records without one.
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
        count = self._count(topic)
        wanted = [partition for partition in range(count) if share.holds(partition)]
        if not wanted or max_records < 1:
            return []
        return self._readers.read(
            self._prefix + topic,
            {partition: position.offsets.get(partition, 0) for partition in wanted},
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
        position = Position({one: max(0, offset - count) for one, offset in end.offsets.items()})
        found: list[Record] = []
        while count and not position.covers(end):
            records = self.read(topic, position, max_records=10_000)
            if not records:
                break
            found += records
            position = position.after(records)
        found.sort(key=lambda record: (record.timestamp_ms, record.partition, record.offset))
        return found[-count:] if count else []

    def size(self, topic: str) -> TopicSize:
        first, end = self._offsets(topic, OFFSET_BEGINNING), self._offsets(topic, OFFSET_END)
        return TopicSize(sum(end.values()) - sum(first.values()), whole=True, size_bytes=None)

    def committed(self, group: str, topic: str) -> Position:
        asked = [TopicPartition(self._prefix + topic, one) for one in range(self._count(topic))]
        if not asked:
            return START
        found = self._try(lambda: _sound(self._group(group).consumer.committed(asked, timeout=self._seconds)))
        return Position({one.partition: one.offset for one in found if one.offset >= 0})

    def commit(self, group: str, topic: str, position: Position) -> None:
        offsets = [TopicPartition(self._prefix + topic, one, offset) for one, offset in position.offsets.items()]
        if offsets:
            self._try(lambda: self._group(group).commit(offsets, seconds=self._seconds))

    def _group(self, group: str) -> Committer:
        with self._lock:
            if group not in self._groups:
                self._groups[group] = Committer(self._connection, self._prefix + group)
            return self._groups[group]

    def _count(self, topic: str) -> int:
        """Partitions of a topic; 0 for one that is not there. Remembered: more of them are seen after a restart."""
        if topic not in self._partitions:
            name = self._prefix + topic
            found = self._try(lambda: self._asker.list_topics(name, timeout=self._seconds)).topics.get(name)
            if found is None or found.error is not None:
                return 0
            self._partitions[topic] = len(found.partitions)
        return self._partitions[topic]

    def make(self, topic: str) -> None:
        """Have the topic, with the partitions, copies and retention of the settings."""
        if self._count(topic):
            return
        settings, name = self._settings, self._prefix + topic
        keep = settings.kafka_retention_days if topic not in topics.KEPT_FOR_EVER else None
        made = NewTopic(
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
        asked: Future[Any] = self._admin.create_topics([made], request_timeout=self._seconds)[name]
        try:
            asked.result(self._seconds + 1)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                if error.args[0].code() == KafkaError.INVALID_REPLICATION_FACTOR:
                    raise LogError(
                        f"Kafka cannot keep HEADRACE_KAFKA_REPLICATION={settings.kafka_replication} copies: "
                        f"{error.args[0].str()}"
                    ) from error
                raise self._unreachable(error.args[0].str()) from error
        deadline = time.monotonic() + self._seconds
        while not self._count(topic):  # the brokers tell each other
            if time.monotonic() > deadline:
                raise self._unreachable(f"the new topic {name} did not appear")
            time.sleep(0.02)

    def _offsets(self, topic: str, moment: int) -> dict[int, int]:
        """The first (OFFSET_BEGINNING) or the next (OFFSET_END) offset of each partition."""
        asked = [TopicPartition(self._prefix + topic, one, moment) for one in range(self._count(topic))]
        if not asked:
            return {}
        found = self._try(lambda: _sound(self._asker.offsets_for_times(asked, timeout=self._seconds)))
        return {one.partition: one.offset for one in found}

    def _try(self, ask: Callable[[], T]) -> T:
        """What Kafka answers, asked again while it settles. Raises LogUnreachableError within a few seconds."""
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                return ask()
            except KafkaException as failure:
                error = failure.args[0]
                if error.code() not in SETTLING or time.monotonic() > deadline:
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
    """What every client of ours is made with."""
    return {
        "bootstrap.servers": settings.kafka_bootstrap,
        "client.id": "headrace",
        "socket.timeout.ms": max(1_000, int(settings.kafka_timeout_seconds * 1000)),
        "socket.connection.setup.timeout.ms": max(1_000, int(settings.kafka_timeout_seconds * 1000)),
        # A broker that comes back is found again within a quarter of a second.
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 250,
        "allow.auto.create.topics": False,
        # What goes wrong is told by the calls that it goes wrong in.
        "log_level": 0,
    }


def _sound(found: list[TopicPartition]) -> list[TopicPartition]:
    """The answer, unless a partition of it is an error."""
    for one in found:
        if one.error is not None:
            raise KafkaException(one.error)
    return found


def _poll(producer: Producer) -> None:
    while True:
        producer.poll(1.0)
