"""Reads Kafka from given positions, with a pool of consumers that prefetch.

A caller that continues where it stopped finds new records in its consumer's queue, within milliseconds of their
append. Any other position takes an idle consumer and seeks. Knows nothing of groups: positions are the caller's.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from infra.log.client import LogError, Record

MAX_IDLE = 8
"""Idle consumers kept for a topic; each has a connection and fetches in the background."""
TRANSIENT_ERRORS = {
    KafkaError._PARTITION_EOF, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT,
    KafkaError._RESOLVE, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.REQUEST_TIMED_OUT, KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError._DESTROY_BROKER,
}  # fmt: skip
"""The consumer recovers from these by itself."""
NO_RECORDS = "it returned none of the records that it has"


class _Reader:
    """Wraps one consumer and knows the offset that it reads next in each partition."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self._consumer = Consumer(
            {
                **connection,
                "group.id": "headrace-reader",  # required by the client; nothing is ever committed under it
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",  # old records may be gone
                "fetch.wait.max.ms": 100,  # also the longest delay of an idle consumer that seeks
                "fetch.error.backoff.ms": 20,
                "queued.max.messages.kbytes": 16_384,
            }
        )
        self.offsets: dict[int, int] = {}

    def seek(self, name: str, offsets: dict[int, int]) -> None:
        """Continues at these offsets (by partition) of Kafka's topic `name`."""
        self._consumer.assign([TopicPartition(name, partition, offset) for partition, offset in offsets.items()])
        self.offsets = dict(offsets)

    def take(self, topic: str, count: int, seconds: float) -> list[Record]:
        """Returns up to `count` records that are there or arrive within `seconds`."""
        records = []
        for message in self._consumer.consume(count, seconds):
            error = message.error()
            if error is not None:
                if error.code() not in TRANSIENT_ERRORS:
                    raise LogError(f"{topic} cannot be read: {error.str()}")
                continue
            record = _record(topic, message)
            self.offsets[record.partition] = record.next_offset
            records.append(record)
        return records

    def close(self) -> None:
        self._consumer.close()


class Readers:
    """Lends consumers to readers. Safe to use from many threads."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self._connection = connection
        self._idle: dict[str, list[_Reader]] = {}
        self._lock = threading.Lock()

    def read(
        self,
        name: str,
        offsets: dict[int, int],
        *,
        topic: str,
        max_records: int,
        ends: Callable[[], dict[int, int]],
        seconds: float,
        unreachable: Callable[[str], Exception],
    ) -> list[Record]:
        """Returns the next records of Kafka's topic `name` from `offsets` (by partition), as records of `topic`.

        `ends` queries the end offset of each partition, so that whatever was acknowledged before this call is read.
        """
        reader = self._reader_at(name, offsets)
        if reader is not None and (records := reader.take(topic, max_records, 0)):
            self._give_back(name, reader)
            return records
        end = ends()
        # An offset beyond the end (the topic was replaced) has nothing to read until the end reaches it.
        readable = {partition: offset for partition, offset in offsets.items() if offset <= end.get(partition, 0)}
        if all(offset >= end[partition] for partition, offset in readable.items()):
            if reader is not None:
                self._give_back(name, reader)
            return []
        if reader is None:
            reader = self._idle_or_new(name)
            reader.seek(name, readable)
        records = []
        deadline = time.monotonic() + seconds
        while not records and time.monotonic() < deadline:
            # Waits for the first record and takes what arrived with it.
            records = reader.take(topic, 1, 0.05)
            if records and max_records > 1:
                records += reader.take(topic, max_records - 1, 0)
        self._give_back(name, reader)
        if not records:
            raise unreachable(NO_RECORDS)
        return records

    def _reader_at(self, name: str, offsets: dict[int, int]) -> _Reader | None:
        """Takes the idle reader that stands at `offsets`, if there is one."""
        with self._lock:
            idle = self._idle.get(name, [])
            for number, reader in enumerate(idle):
                if reader.offsets == offsets:
                    return idle.pop(number)
        return None

    def _idle_or_new(self, name: str) -> _Reader:
        with self._lock:
            idle = self._idle.get(name, [])
            # Readers in use are at the end of the list: take the one that has been idle longest.
            if len(idle) >= MAX_IDLE // 2:
                return idle.pop(0)
        return _Reader(self._connection)

    def _give_back(self, name: str, reader: _Reader) -> None:
        with self._lock:
            idle = self._idle.setdefault(name, [])
            idle.append(reader)
            surplus = idle.pop(0) if len(idle) > MAX_IDLE else None
        if surplus is not None:
            surplus.close()


def _record(topic: str, message: Message) -> Record:
    partition, offset, key, value = message.partition(), message.offset(), message.key(), message.value()
    assert partition is not None
    assert offset is not None
    return Record(
        topic=topic,
        partition=partition,
        offset=offset,
        next_offset=offset + 1,
        timestamp_ms=message.timestamp()[1],
        key=_text(key),
        value=value.encode() if isinstance(value, str) else value or b"",
    )


def _text(key: str | bytes | None) -> str:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else key or ""
