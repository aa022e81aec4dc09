"""Defines the event log as its users see it, whichever adapter holds it: append, read, commit.

A topic consists of partitions. The records of one key lie in one partition, in the order in which they were appended;
between partitions there is no order. The log on files has one partition, 0. Delivery is at least once: every reader
counts an `event_id` once. Knows nothing of what the records mean.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

logger = logging.getLogger(__name__)

POSITION = re.compile(r"\d{1,9}:\d{1,18}(,\d{1,9}:\d{1,18})*", re.ASCII)


class LogError(Exception):
    """The log cannot be read or written as asked."""


class LogFullError(Exception):
    """The records were not stored: the disk is full or refuses the write."""


class LogUnreachableError(LogError):
    """The servers that hold the log did not answer in time. What was to be stored may be stored: send it again."""


@dataclass(frozen=True, slots=True)
class Record:
    """Holds one record of a topic and where it stands."""

    topic: str
    partition: int
    offset: int
    """Grows along the partition; assume nothing else. Readers continue from `next_offset` and never calculate."""
    next_offset: int
    timestamp_ms: int
    """When it was appended, milliseconds since the epoch."""
    key: str
    value: bytes
    """One JSON object, UTF-8."""

    @property
    def origin(self) -> str:
        """Returns the record's name in dead letters and messages."""
        return origin(self.topic, self.partition, self.offset)


def origin(topic: str, partition: int, offset: int) -> str:
    """Returns where a record stands, as text: its name in dead letters and messages.

    >>> origin("labels", 2, 40)
    'labels:2:40'
    """
    return f"{topic}:{partition}:{offset}"


@dataclass(frozen=True, slots=True)
class Position:
    """Holds how far a reader has come in a topic: for each partition the next offset to read.

    A partition that is not named is read from its beginning; so is one whose offset was removed with old records.

    >>> str(Position({1: 7, 0: 40})), Position.parse("0:40,1:7") == Position({1: 7, 0: 40}), str(START)
    ('0:40,1:7', True, '0:0')
    """

    offsets: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Offset 0 is left out, so that equal positions compare equal and have equal texts.
        ordered = {partition: offset for partition, offset in sorted(self.offsets.items()) if offset}
        object.__setattr__(self, "offsets", ordered)

    def __str__(self) -> str:
        return ",".join(f"{partition}:{offset}" for partition, offset in self.offsets.items()) or "0:0"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Reads the text that `str` wrote. Raises ValueError for any other text."""
        if not POSITION.fullmatch(text):
            raise ValueError(f"{text!r} is not a position in the log, such as 0:18874")
        pairs = (pair.split(":") for pair in text.split(","))
        return cls({int(partition): int(offset) for partition, offset in pairs})

    def after(self, records: Iterable[Record]) -> Position:
        """Returns the position of a reader that stood here and has then read `records`, in their order."""
        return Position({**self.offsets, **{record.partition: record.next_offset for record in records}})

    def covers(self, other: Position) -> bool:
        """Returns whether everything before `other` lies before this position too."""
        return all(self.offsets.get(partition, 0) >= offset for partition, offset in other.offsets.items())

    def of(self, share: PartitionShare) -> Position:
        """Returns the part of this position that lies in the partitions of a share."""
        return Position({partition: offset for partition, offset in self.offsets.items() if share.holds(partition)})

    @property
    def total(self) -> int:
        """Returns the sum of the offsets: a measure of progress, in a unit of the adapter's own."""
        return sum(self.offsets.values())


START = Position()
"""The beginning of every partition."""


@dataclass(frozen=True, slots=True)
class PartitionShare:
    """Names the partitions of one of `shares` readers that divide a topic: those with p % shares == index."""

    index: int
    shares: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.shares:
            raise LogError(
                f"HEADRACE_SCORER_SHARE={self.index} of HEADRACE_SCORER_SHARES={self.shares}: shares count from 0"
            )

    def holds(self, partition: int) -> bool:
        """Returns whether a partition belongs to this share."""
        return partition % self.shares == self.index


ALL_PARTITIONS = PartitionShare(0, 1)


@dataclass(frozen=True, slots=True)
class TopicSize:
    """Holds how much a topic contains."""

    records: int
    whole: bool
    """False while older records are still being counted: there are at least this many."""
    size_bytes: int | None
    """None where the log does not tell."""


def refuse_unusable(key: str, value: bytes) -> None:
    """Raises LogError for a record that not every adapter can keep: one record is one line."""
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise LogError(f"a record's key is Unicode text: {error}") from error
    if "\t" in key or "\n" in key or b"\n" in value:
        raise LogError("a record's key may hold no tab, and neither key nor value a line feed")


class EventLog(Protocol):
    """Stores and returns records. Safe to use from many threads."""

    def append(self, topic: str, records: Sequence[tuple[str, bytes]]) -> None:
        """Stores (key, value) pairs durably, those of one key in their order.

        On return the files hold all of them behind an fsync, and Kafka holds all of them on every replica in sync.
        On an error the files hold none of them; Kafka may hold some. Sending them again is right in both: every reader
        counts an event_id once. Raises LogFullError when there is no room, LogUnreachableError when Kafka does not
        answer in time, LogError for an unusable record; then nothing was sent.
        """
        ...

    def read(
        self, topic: str, position: Position, *, max_records: int = 1_000, share: PartitionShare = ALL_PARTITIONS
    ) -> list[Record]:
        """Returns the next records from `position` on, in order within each partition; empty at the end of the topic.

        At most `max_records`, at times fewer; continue from `position.after(records)`. With a share, only those of its
        partitions. A topic that nobody has written to is empty.
        """
        ...

    def end(self, topic: str) -> Position:
        """Returns the position of a reader that has read everything there is now."""
        ...

    def latest(self, topic: str, count: int) -> list[Record]:
        """Returns the last `count` records of the topic, oldest first by their time; fewer when it holds fewer."""
        ...

    def size(self, topic: str) -> TopicSize:
        """Returns how much the topic holds. Takes at most half a second: a long topic is counted over several calls."""
        ...

    def committed(self, group: str, topic: str) -> Position:
        """Returns where `group` continues reading; START when it has committed nothing."""
        ...

    def commit(self, group: str, topic: str, position: Position) -> None:
        """Stores durably that `group` has processed everything before `position`.

        Partitions that the position does not name stay where they were.
        """
        ...


def follow(
    log: EventLog,
    topic: str,
    position: Position,
    *,
    stop: threading.Event,
    max_records: int = 1_000,
    share: PartitionShare = ALL_PARTITIONS,
    poll_seconds: float = 0.02,
) -> Iterator[list[Record]]:
    """Yields batches of records from `position` on, for ever; waits at the end of the topic until `stop` is set.

    While the log cannot be reached, it logs a warning once and tries again every second.
    """
    waits = False
    while not stop.is_set():
        try:
            records = log.read(topic, position, max_records=max_records, share=share)
        except LogUnreachableError as error:
            if not waits:
                logger.warning("waiting for the log: %s", error)
            waits = True
            stop.wait(1.0)
            continue
        waits = False
        if records:
            position = position.after(records)
            yield records
        else:
            stop.wait(poll_seconds)


def read_all(log: EventLog, topic: str) -> Iterator[Record]:
    """Yields every record from the beginning of the topic to its end, in order within each partition."""
    position = START
    while records := log.read(topic, position, max_records=10_000):
        position = position.after(records)
        yield from records
