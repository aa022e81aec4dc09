"""What a user of the event log sees, whichever adapter holds it: append, read, commit.

An offset is an integer that grows along a topic, and no more than that: readers go on from
`Record.next_offset` and never calculate with offsets. Knows nothing of what the records mean.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from infra.settings import Settings


@dataclass(frozen=True, slots=True)
class Record:
    topic: str
    offset: int
    next_offset: int
    timestamp_ms: int
    """When it was appended, milliseconds since the epoch."""
    key: str
    value: bytes
    """One JSON object, UTF-8."""


class LogFullError(Exception):
    """The record was not stored: the disk is full or refuses the write. Nothing of the call was kept."""


class LogError(Exception):
    """The log cannot be read or written as asked."""


class EventLog(Protocol):
    def append(self, topic: str, records: Sequence[tuple[str, bytes]]) -> list[int]:
        """Store (key, value) pairs, all or none; on return they survive a crash.

        Returns their offsets. Raises LogFullError when there is no room, LogError for an unusable record.
        """
        ...

    def read(self, topic: str, offset: int, *, max_records: int = 1_000) -> list[Record]:
        """The records from `offset` on, at most `max_records`; empty at the end of the topic."""
        ...

    def end(self, topic: str) -> int:
        """The offset that the next record will get."""
        ...

    def latest(self, topic: str, count: int) -> list[Record]:
        """The last `count` records of the topic, oldest first; fewer when it holds fewer."""
        ...

    def committed(self, group: str, topic: str) -> int:
        """Where `group` goes on reading; 0 when it has committed nothing."""
        ...

    def commit(self, group: str, topic: str, offset: int) -> None:
        """Remember durably that `group` is done with everything before `offset`."""
        ...


def follow(
    log: EventLog,
    topic: str,
    offset: int,
    *,
    stop: threading.Event,
    max_records: int = 1_000,
    poll_seconds: float = 0.02,
) -> Iterator[list[Record]]:
    """Batches of records from `offset` on, for ever; waits at the end of the topic until `stop` is set."""
    while not stop.is_set():
        records = log.read(topic, offset, max_records=max_records)
        if records:
            offset = records[-1].next_offset
            yield records
        else:
            stop.wait(poll_seconds)


def open_log(settings: Settings) -> EventLog:
    from infra.log.files import FileLog

    return FileLog(settings.log_dir, segment_bytes=settings.segment_mebibytes * 2**20)
