"""How much the event log holds: records, bytes, the last append and who was active last, read off its segment files.

Counts lines, which is cheap, and never parses more than the tail. What was counted once is not read again; a first
look at a long log counts for `budget_seconds` and goes on at the next look. Knows nothing of events.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from apps.console.views import TopicReading
from infra.log.files import decode_line

CHUNK_BYTES = 4 << 20
TAIL_BYTES = 64 << 10


@dataclass(slots=True)
class _Counted:
    size_bytes: int = 0
    lines: int = 0


class LogMeter:
    """`clock` gives seconds of any epoch. Safe to use from many threads."""

    def __init__(
        self, folder: Path, *, budget_seconds: float = 0.5, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._budget_seconds = budget_seconds
        self._clock = clock
        self._counted: dict[Path, _Counted] = {}
        self._lock = threading.Lock()

    def read(self, topic: str) -> TopicReading:
        """The topic as it stands now; an unknown topic is an empty one."""
        deadline = self._clock() + self._budget_seconds
        records = size_bytes = 0
        whole = True
        with self._lock:
            for path in reversed(self._segments(topic)):
                counted = self._counted.setdefault(path, _Counted())
                size = path.stat().st_size
                whole = self._count(path, counted, size, deadline) and whole
                records += counted.lines
                size_bytes += size
        last = next(self._tail(topic), None)
        return TopicReading(
            topic=topic,
            records=records,
            whole=whole,
            size_bytes=size_bytes,
            last_append=datetime.fromtimestamp(last[0] / 1000, tz=UTC) if last else None,
        )

    def recent_keys(self, topic: str, count: int) -> tuple[str, ...]:
        """Keys of the topic's last records, each once, the latest first; at most `count`."""
        keys: dict[str, None] = {}
        for _, key in self._tail(topic):
            keys.setdefault(key)
            if len(keys) == count:
                break
        return tuple(keys)

    def first_after(self, topic: str, moment: datetime) -> datetime | None:
        """When the first record behind `moment` was appended, as far as the tail reaches back; None without one."""
        after = moment.timestamp() * 1000
        first = None
        for appended, _ in self._tail(topic):
            if appended <= after:
                break
            first = appended
        return None if first is None else datetime.fromtimestamp(first / 1000, tz=UTC)

    def _segments(self, topic: str) -> list[Path]:
        return sorted((self._folder / topic).glob("*.log"))

    def _count(self, path: Path, counted: _Counted, size: int, deadline: float) -> bool:
        """Count what is new in a segment; False when the time ran out first."""
        if size < counted.size_bytes:  # a crash's unfinished line was moved aside: count anew
            counted.size_bytes = counted.lines = 0
        with path.open("rb") as segment:
            segment.seek(counted.size_bytes)
            while counted.size_bytes < size:
                if self._clock() > deadline:
                    return False
                chunk = segment.read(min(CHUNK_BYTES, size - counted.size_bytes))
                counted.lines += chunk.count(b"\n")
                counted.size_bytes += len(chunk)
        return True

    def _tail(self, topic: str) -> Iterator[tuple[int, str]]:
        """(append time in ms, key) of the last whole records, the latest first."""
        for path in self._segments(topic)[:-3:-1]:
            with path.open("rb") as segment:
                size = segment.seek(0, 2)
                start = segment.seek(max(0, size - TAIL_BYTES))
                lines = segment.read(size - start).split(b"\n")[:-1]
            for line in reversed(lines[1:] if start else lines):
                if decoded := decode_line(line):
                    yield decoded[0], decoded[1]
