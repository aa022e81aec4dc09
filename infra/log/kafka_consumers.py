"""Reading Kafka from given positions: consumers that are kept, because one that goes on has its records at hand.

A reader that asks on from where it stopped finds what arrived since in its consumer's queue, within milliseconds of its
append. A position from elsewhere takes any idle consumer and moves it. Knows nothing of groups: positions are the
caller's.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from infra.log.client import LogError, Record

IDLE_KEPT = 8
"""Idle consumers of a topic that are kept; each has a connection and asks for records in the background."""
PASSING = {
    KafkaError._PARTITION_EOF, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT,
    KafkaError._RESOLVE, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.REQUEST_TIMED_OUT, KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError._DESTROY_BROKER,
}  # fmt: skip
"""The consumer gets over these by itself."""
GIVES_UP = "it gave none of the records that it has"


class _Reader:
    """One consumer, and where it is."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self._consumer = Consumer(
            {
                **connection,
                "group.id": "headrace-reader",  # required by the client; nothing is ever committed under it
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",  # old records may be gone
                "fetch.wait.max.ms": 100,  # an idle consumer asks as often, and is as late when it is moved
                "fetch.error.backoff.ms": 20,
                "queued.max.messages.kbytes": 16_384,
            }
        )
        self.place: dict[int, int] = {}

    def move(self, name: str, place: dict[int, int]) -> None:
        self._consumer.assign([TopicPartition(name, partition, offset) for partition, offset in place.items()])
        self.place = dict(place)

    def take(self, topic: str, count: int, seconds: float) -> list[Record]:
        """Up to `count` records that are there, or arrive within that time."""
        records = []
        for message in self._consumer.consume(count, seconds):
            error = message.error()
            if error is not None:
                if error.code() not in PASSING:
                    raise LogError(f"{topic} cannot be read: {error.str()}")
                continue
            record = _record(topic, message)
            self.place[record.partition] = record.next_offset
            records.append(record)
        return records

    def close(self) -> None:
        self._consumer.close()


class Readers:
    def __init__(self, connection: dict[str, Any]) -> None:
        self._connection = connection
        self._idle: dict[str, list[_Reader]] = {}
        self._lock = threading.Lock()

    def read(
        self,
        name: str,
        place: dict[int, int],
        *,
        topic: str,
        max_records: int,
        ends: Callable[[], dict[int, int]],
        seconds: float,
        unreachable: Callable[[str], Exception],
    ) -> list[Record]:
        """The next records of Kafka's topic `name` from `place` (offset by partition), as records of `topic`.

        `ends` asks for the next offset of each partition: whatever was acknowledged before this call is seen by it.
        """
        reader = self._lend(name, place)
        if reader is not None and (records := reader.take(topic, max_records, 0)):
            self._give_back(name, reader)
            return records
        end = ends()
        # A place behind the end (the topic was replaced) has nothing to read until the end is there.
        waiting = {one: offset for one, offset in place.items() if offset <= end.get(one, 0)}
        if all(offset >= end[one] for one, offset in waiting.items()):
            if reader is not None:
                self._give_back(name, reader)
            return []
        if reader is None:
            reader = self._any(name)
            reader.move(name, waiting)
        records = []
        deadline = time.monotonic() + seconds
        while not records and time.monotonic() < deadline:
            # Whatever is there at once; else the first that arrives, and what has come with it.
            records = reader.take(topic, 1, 0.05)
            if records and max_records > 1:
                records += reader.take(topic, max_records - 1, 0)
        self._give_back(name, reader)
        if not records:
            raise unreachable(GIVES_UP)
        return records

    def _lend(self, name: str, place: dict[int, int]) -> _Reader | None:
        """The idle reader that stands at `place`, if there is one."""
        with self._lock:
            idle = self._idle.get(name, [])
            for number, reader in enumerate(idle):
                if reader.place == place:
                    return idle.pop(number)
        return None

    def _any(self, name: str) -> _Reader:
        with self._lock:
            idle = self._idle.get(name, [])
            # Those that go on are at the end of the list: take one that has rested longest.
            if len(idle) >= IDLE_KEPT // 2:
                return idle.pop(0)
        return _Reader(self._connection)

    def _give_back(self, name: str, reader: _Reader) -> None:
        with self._lock:
            idle = self._idle.setdefault(name, [])
            idle.append(reader)
            surplus = idle.pop(0) if len(idle) > IDLE_KEPT else None
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
