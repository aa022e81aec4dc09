"""Keeps the event log in append-only segment files: the embedded adapter.

A topic is a folder and has one partition, 0; a segment is named after the offset of its first byte; an offset is a
byte position. A record is one line, so that `tail` and `grep` can read it:

    <crc32 of the rest, 8 hex> TAB <append time, ms> TAB <key> TAB <JSON> LF

Any number of processes may append (a lock file orders them) and read. Calls that arrive together share one
write and one fsync. A line that a crash left unfinished is moved aside to `<segment>.torn`; a line whose
checksum is wrong is skipped and counted: neither is ever handed out.
"""

import fcntl
import itertools
import json
import logging
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from infra.atomic_files import replacing, sync
from infra.log.client import (
    ALL_PARTITIONS,
    START,
    LogError,
    LogFullError,
    PartitionShare,
    Position,
    Record,
    TopicSize,
    refuse_unusable,
)
from infra.log.record_count import RecordCounter

logger = logging.getLogger(__name__)

PARTITION = 0
READ_BYTES = 1 << 20


def encode_line(timestamp_ms: int, key: str, value: bytes) -> bytes:
    """Encodes one record as a line. Raises LogError when key or value would break the framing."""
    refuse_unusable(key, value)
    body = b"%d\t%s\t%s" % (timestamp_ms, key.encode(), value)
    return b"%08x\t%s\n" % (zlib.crc32(body), body)


def decode_line(line: bytes) -> tuple[int, str, bytes] | None:
    """Decodes a line without its LF to (timestamp_ms, key, value); None when its checksum or form is wrong."""
    body = line[9:]
    try:
        if int(line[:8], 16) != zlib.crc32(body):
            return None
        timestamp, key, value = body.split(b"\t", 2)
        return int(timestamp), key.decode(), value
    except ValueError:
        return None


class _Batch:
    """Holds the lines of several callers that are written together."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.done = threading.Event()
        # Counts as not stored until the write is known to be complete, also when an interrupt stops the writer.
        self.error: Exception | None = LogError("not stored: the write was interrupted; send it again")


class _Writer:
    """Appends to one topic: of callers that arrive together, the first writes for all of them."""

    def __init__(self, folder: Path, *, segment_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._lock_fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        self._waiting = _Batch()
        self._batch_lock = threading.Lock()
        self._write_lock = threading.Lock()

    def append(self, lines: list[bytes]) -> None:
        with self._batch_lock:
            batch = self._waiting
            leads = not batch.lines
            batch.lines.extend(lines)
        if leads:
            with self._write_lock:
                with self._batch_lock:
                    self._waiting = _Batch()
                try:
                    self._write(b"".join(batch.lines))
                    batch.error = None
                except Exception as error:
                    batch.error = error
                finally:
                    batch.done.set()
        else:
            batch.done.wait()
        if batch.error is not None:
            raise batch.error

    def _write(self, data: bytes) -> None:
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        try:
            fd, size = self._open_segment()
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, size)
                raise
            finally:
                os.close(fd)
        except OSError as error:
            raise LogFullError(
                f"not stored: {self._folder} refused the write ({error.strerror}); "
                "free space there or move HEADRACE_DATA_DIR, then send it again"
            ) from error
        finally:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def _open_segment(self) -> tuple[int, int]:
        """Returns file descriptor and size of the segment to write to: the last, or a new one when it is full."""
        base, path = (_segments(self._folder) or [(0, self._folder / f"{0:020d}.log")])[-1]
        fd, size = _open_repaired(path)
        if size < self._segment_bytes:
            return fd, size
        os.close(fd)
        base += size
        fd, size = _open_repaired(self._folder / f"{base:020d}.log")
        sync(self._folder)
        return fd, size


def _open_repaired(path: Path) -> tuple[int, int]:
    """Opens or creates a segment, cut back to its last whole line. Returns file descriptor and size."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        return fd, _repair_tail(fd, path)
    except OSError:
        os.close(fd)
        raise


def _whole_size(fd: int) -> int:
    """Returns the number of bytes up to and including the last LF."""
    size = os.fstat(fd).st_size
    while size > 0:
        start = max(0, size - READ_BYTES)
        if os.pread(fd, 1, size - 1) == b"\n":
            return size
        size = start + os.pread(fd, size - start, start).rfind(b"\n") + 1
    return 0


def _repair_tail(fd: int, path: Path) -> int:
    """Moves an unfinished last line to the .torn file, if there is one. Returns the size that is left."""
    size, whole = os.fstat(fd).st_size, _whole_size(fd)
    if whole == size:
        return size
    torn = path.with_suffix(".torn")
    with torn.open("ab") as aside:
        aside.write(os.pread(fd, size - whole, whole) + b"\n")
    os.ftruncate(fd, whole)
    os.fsync(fd)
    logger.warning(
        "%s ended in an unfinished record, left by a crash: dropped %d bytes after offset %d (kept in %s)",
        path, size - whole, int(path.stem) + whole, torn,
    )  # fmt: skip
    return whole


def _segments(folder: Path) -> list[tuple[int, Path]]:
    return sorted((int(path.stem), path) for path in folder.glob("*.log"))


class FileLog:
    """Implements infra.log.client.EventLog on files; `clock` gives seconds since the epoch."""

    def __init__(
        self, folder: Path, *, segment_bytes: int = 64 * 2**20, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._clock = clock
        self._writers: dict[str, _Writer] = {}
        self._writers_lock = threading.Lock()
        self._damaged: set[tuple[str, int]] = set()
        self._counter = RecordCounter()

    def append(self, topic: str, records: Sequence[tuple[str, bytes]]) -> None:
        if not records:
            return
        with self._writers_lock:
            writer = self._writers.get(topic)
            if writer is None:
                writer = _Writer(self._folder / topic, segment_bytes=self._segment_bytes)
                self._writers[topic] = writer
        now = int(self._clock() * 1000)
        writer.append([encode_line(now, key, value) for key, value in records])

    def read(
        self, topic: str, position: Position, *, max_records: int = 1_000, share: PartitionShare = ALL_PARTITIONS
    ) -> list[Record]:
        if not share.holds(PARTITION):
            return []
        start = position.offsets.get(PARTITION, 0)
        return list(itertools.islice(self.records(topic, start, self.end_offset(topic)), max_records))

    def records(self, topic: str, start: int, end: int) -> Iterator[Record]:
        """Yields every undamaged record that starts in [start, end)."""
        for offset, line in self.lines(topic, start, end):
            decoded = decode_line(line)
            if decoded is not None:
                timestamp, key, value = decoded
                yield Record(topic, PARTITION, offset, offset + len(line) + 1, timestamp, key, value)
            elif (topic, offset) not in self._damaged:
                self._damaged.add((topic, offset))
                logger.warning("skipped a damaged record in %s at offset %d", topic, offset)

    @property
    def skipped_lines(self) -> int:
        """Returns the number of damaged lines that this reader has met, each counted once."""
        return len(self._damaged)

    def latest(self, topic: str, count: int) -> list[Record]:
        """Returns the last `count` records, oldest first."""
        end, reach = self.end_offset(topic), count * 1024
        while True:
            records = list(self.records(topic, self.align(topic, end - reach) if reach < end else 0, end))
            if len(records) >= count or reach >= end:
                return records[-count:]
            reach *= 4

    def size(self, topic: str) -> TopicSize:
        return self._counter.count(self._folder / topic)

    def lines(self, topic: str, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yields (offset, line without LF) of every whole line that starts in [start, end)."""
        for base, path in _segments(self._folder / topic):
            size = path.stat().st_size
            if base + size <= start or base >= end:
                continue
            with path.open("rb") as segment:
                position = max(start, base)
                segment.seek(position - base)
                rest = b""
                while position < end and (chunk := segment.read(READ_BYTES)):
                    whole, rest = _split_lines(rest + chunk)
                    for line in whole:
                        if position >= end:
                            return
                        yield position, line
                        position += len(line) + 1

    def align(self, topic: str, offset: int) -> int:
        """Returns the first offset from `offset` on at which a line starts; the end, when there is none."""
        for base, path in _segments(self._folder / topic):
            if offset <= base:
                return base
            with path.open("rb") as segment:
                segment.seek(offset - 1 - base)
                while chunk := segment.read(READ_BYTES):
                    if (cut := chunk.find(b"\n")) >= 0:
                        return base + segment.tell() - len(chunk) + cut + 1
        return self.end_offset(topic)

    def end(self, topic: str) -> Position:
        return Position({PARTITION: self.end_offset(topic)})

    def end_offset(self, topic: str) -> int:
        """Returns the offset that the next record will get."""
        segments = _segments(self._folder / topic)
        if not segments:
            return 0
        base, path = segments[-1]
        # A write under way may yet be cut back, so the end is only known while no writer holds the lock.
        with (self._folder / topic / "lock").open("ab") as lock, path.open("rb") as segment:
            fcntl.flock(lock, fcntl.LOCK_SH)
            return base + _whole_size(segment.fileno())

    def committed(self, group: str, topic: str) -> Position:
        path = self._offsets_path(group, topic)
        if not path.exists():
            return START
        try:
            return Position({PARTITION: int(json.loads(path.read_bytes())["offset"])})
        except (ValueError, KeyError, TypeError) as error:
            raise LogError(f"{path} is damaged; remove it to read {topic} from its beginning") from error

    def commit(self, group: str, topic: str, position: Position) -> None:
        if PARTITION not in position.offsets:
            return
        with replacing(self._offsets_path(group, topic)) as new:
            new.write_text(json.dumps({"offset": position.offsets[PARTITION]}))

    def _offsets_path(self, group: str, topic: str) -> Path:
        return self._folder / topic / "offsets" / f"{group}.json"


def _split_lines(data: bytes) -> tuple[list[bytes], bytes]:
    """Splits `data` into its whole lines and what follows the last LF."""
    lines = data.split(b"\n")
    return lines[:-1], lines[-1]
