"""Keeps records on the local disk while the event log cannot take them, and delivers them later.

A spool is a folder of small files of the log's own lines (infra/log/files.py). A process writes to files of its own and
locks each for as long as it lives. The kernel releases the locks of a dead process, and any other process then adopts
and delivers its files. A file is removed once it is delivered: a crash in between delivers some records again, so
readers count an event_id once, as they do anyway. Knows nothing of what the records mean.
"""

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.log.client import EventLog, LogError
from infra.log.files import decode_line, encode_line

logger = logging.getLogger(__name__)

BATCH = 500
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
"""After a failure, delivery is tried again after the first pause, which doubles up to the longest."""
ADOPT_SECONDS = 2.0
"""How often a process looks for files of dead processes."""
DELIVER_SECONDS = 0.2
"""How long records are collected before they go to the log together."""
HANGING_SECONDS = 1.0
"""A log that takes this long to answer counts as one that refuses."""


@dataclass(eq=False)
class _SpoolFile:
    """Describes a file of the spool that this process has locked."""

    path: Path
    fd: int
    size: int = 0
    records: int = 0
    position: int = 0
    """Everything before it is in the log."""
    open: bool = True
    """It may still be written to."""
    unsynced: bool = False


class Spool:
    """Stores lines in files of `folder`, at most `max_bytes`, adopted files included. Safe to use from threads."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._parts: list[_SpoolFile] = []
        self._lock = threading.Lock()
        self._files_created = 0
        self._read_to = 0

    @property
    def records(self) -> int:
        """Returns how many records wait in the files of this process."""
        return sum(part.records for part in self._parts)

    @property
    def size(self) -> int:
        """Returns how many bytes wait in the files of this process."""
        return sum(part.size - part.position for part in self._parts)

    def append(self, line: bytes) -> bool:
        """Stores a line of encode_line; it survives this process. False when the spool or the disk is full."""
        with self._lock:
            if self.size + len(line) > self._max_bytes:
                return False
            try:
                part = self._parts[-1] if self._parts and self._parts[-1].open else self._new_file()
                _write(part, line)
            except OSError as error:
                logger.error("the spool %s refuses the write: %s", self._folder, error)
                return False
            return True

    def _new_file(self) -> _SpoolFile:
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            self._files_created += 1
            path = self._folder / f"{time.time_ns():020d}-{os.getpid()}-{self._files_created}.spool"
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
            if _lock(fd, path):
                self._parts.append(_SpoolFile(path, fd))
                return self._parts[-1]
            os.close(fd)  # another process adopted it first, while it was empty

    def sync(self) -> None:
        """Writes what was appended through to the disk, so that it survives a power cut too."""
        with self._lock:
            part = self._parts[-1] if self._parts and self._parts[-1].unsynced else None
            if part is not None:
                part.unsynced = False
                os.fsync(part.fd)

    def adopt(self) -> int:
        """Takes over the files of dead processes and returns how many."""
        own = {part.path for part in self._parts}
        adopted = 0
        for path in sorted(self._folder.glob("*.spool")):
            if path in own:
                continue
            try:
                fd = os.open(path, os.O_RDWR | os.O_APPEND)
            except FileNotFoundError:
                continue
            if not _lock(fd, path):
                os.close(fd)
                continue
            part = _SpoolFile(path, fd, size=os.fstat(fd).st_size, open=False)
            part.records = sum(1 for _ in _lines(part))
            with self._lock:
                # First in the order of delivery: it is older than what this process wrote.
                self._parts.insert(adopted, part)
            adopted += 1
        return adopted

    def oldest(self, count: int) -> list[tuple[str, bytes]]:
        """Returns up to `count` (key, value) pairs that have waited longest; their file takes no more from then on."""
        with self._lock:
            while self._parts:
                part = self._parts[0]
                part.open = False
                pairs, end = [], part.position
                for end, line in _lines(part):
                    if (decoded := decode_line(line)) is None:
                        logger.warning("skipped a damaged record in %s before byte %d", part.path, end)
                    else:
                        pairs.append(decoded[1:])
                    if len(pairs) == count:
                        break
                self._read_to = end
                if pairs:
                    return pairs
                self._remove(part)
            return []

    def mark_delivered(self, count: int) -> None:
        """Forgets the `count` pairs of the last call of `oldest`, which the log now holds."""
        with self._lock:
            part = self._parts[0]
            part.position, part.records = self._read_to, part.records - count
            if next(_lines(part), None) is None:
                self._remove(part)

    def close(self) -> None:
        """Unlocks all files, so that another process may deliver them."""
        with self._lock:
            for part in self._parts:
                os.close(part.fd)
            self._parts.clear()

    def _remove(self, part: _SpoolFile) -> None:
        part.path.unlink(missing_ok=True)
        os.close(part.fd)
        self._parts.remove(part)


def _lock(fd: int, path: Path) -> bool:
    """Locks a file for the life of this process; False when another process holds it or has removed it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(fd).st_nlink > 0


def _write(part: _SpoolFile, line: bytes) -> None:
    try:
        view = memoryview(line)
        while view:
            view = view[os.write(part.fd, view) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(part.fd, part.size)
        raise
    part.size += len(line)
    part.records += 1
    part.unsynced = True


def _lines(part: _SpoolFile) -> Iterator[tuple[int, bytes]]:
    """Yields (position after it, line without LF) of every undelivered whole line; leaves out a torn last one."""
    position = part.position
    with open(part.fd, "rb", closefd=False) as file:
        file.seek(position)
        for line in file:
            if not line.endswith(b"\n"):
                logger.warning("%s ends in a record that a crash left unfinished; it was never acknowledged", part.path)
                return
            position += len(line)
            yield position, line[:-1]


class SpooledLog:
    """Writes one topic of a log through a spool, so that whoever appends waits for no server and no disk.

    When `append` returns, the record is in a local file that survives the process. Every DELIVER_SECONDS a thread
    moves what was collected to the log, in order and many records at once. While the log refuses, the records stay in
    the spool and are synced to the disk, so that they survive a power cut too.
    """

    def __init__(
        self,
        log: EventLog,
        topic: str,
        spool: Spool,
        *,
        clock: Callable[[], float] = time.time,
        on_lost: Callable[[], None] = lambda: None,
        on_change: Callable[[int, int], None] = lambda records, size: None,
    ) -> None:
        """clock: seconds since the epoch; on_lost: called for each lost record; on_change: called with the numbers of
        records and bytes that wait."""
        self._log = log
        self._topic = topic
        self._spool = spool
        self._clock = clock
        self._on_lost = on_lost
        self._on_change = on_change
        self._retry_at = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self._failing = False
        self._append_started = float("inf")
        self._stopping = threading.Event()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the delivery of what earlier processes left and of what comes; the first `append` does so too."""
        with self._start_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"spooled {self._topic}", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Delivers what waits, if the log takes it; otherwise it stays in the spool until the next start."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            if not self._thread.is_alive():
                self._spool.close()

    def append(self, key: str, value: bytes) -> bool:
        """Stores a record. False: the log takes no records at the moment, or this record is lost and counted so."""
        try:
            line = encode_line(int(self._clock() * 1000), key, value)
        except LogError:
            logger.exception("a record for %s cannot be stored in any log", self._topic)
            self._on_lost()
            return False
        if self._thread is None:
            self.start()
        if not self._spool.append(line):
            self._on_lost()
            logger.error("a record for %s is lost: the log is down and the spool is full", self._topic)
            return False
        return not self._failing and time.monotonic() - self._append_started < HANGING_SECONDS

    def _run(self) -> None:
        next_adoption, reported, pause = 0.0, (0, 0), 0.0  # no pause before what an earlier process left
        while not self._stopping.wait(pause):
            pause = DELIVER_SECONDS
            try:
                if time.monotonic() >= next_adoption:
                    next_adoption = time.monotonic() + ADOPT_SECONDS
                    self._spool.adopt()
                if time.monotonic() >= self._retry_at:
                    self._deliver()
                if self._failing:
                    self._spool.sync()
                if (waits := (self._spool.records, self._spool.size)) != reported:
                    self._on_change(*waits)
                    reported = waits
            except Exception:
                logger.exception("the spool of %s met an error and continues", self._topic)
                self._stopping.wait(1.0)
        if not self._failing:
            self._deliver()

    def _deliver(self) -> None:
        """Moves what waits to the log, until the log refuses."""
        while pairs := self._spool.oldest(BATCH):
            self._append_started = time.monotonic()
            try:
                self._log.append(self._topic, pairs)
            except Exception as error:  # whatever the log's client raises
                self._log_failed(str(error))
                return
            finally:
                self._append_started = float("inf")
            self._spool.mark_delivered(len(pairs))
            if self._failing:
                logger.info("the event log takes %s again", self._topic)
            self._failing, self._pause = False, FIRST_PAUSE_SECONDS

    def _log_failed(self, reason: str) -> None:
        if not self._failing:
            logger.error("%s stay in the spool because the event log is down: %s", self._topic, reason)
        self._failing = True
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
