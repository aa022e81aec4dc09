"""Counts the records in the files of a topic by their line ends, without parsing.

Nothing is counted twice. The first count of a long log stops after `budget_seconds` and continues at the next call.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infra.log.client import TopicSize

CHUNK_BYTES = 4 << 20


@dataclass(slots=True)
class _Counted:
    size_bytes: int = 0
    lines: int = 0


class RecordCounter:
    """Counts, and remembers what it has counted. `clock` gives seconds of any epoch. Safe to use from many threads."""

    def __init__(self, *, budget_seconds: float = 0.5, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget_seconds = budget_seconds
        self._clock = clock
        self._counted: dict[Path, _Counted] = {}
        self._lock = threading.Lock()

    def count(self, folder: Path) -> TopicSize:
        """Returns what the segments in `folder` hold now."""
        deadline = self._clock() + self._budget_seconds
        records = size_bytes = 0
        whole = True
        with self._lock:
            for path in sorted(folder.glob("*.log"), reverse=True):
                counted = self._counted.setdefault(path, _Counted())
                size = path.stat().st_size
                whole = self._count(path, counted, size, deadline) and whole
                records += counted.lines
                size_bytes += size
        return TopicSize(records, whole, size_bytes)

    def _count(self, path: Path, counted: _Counted, size: int, deadline: float) -> bool:
        """Counts what is new in a segment; False when the time ran out first."""
        if size < counted.size_bytes:  # a crash's unfinished line was moved aside: start over
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
