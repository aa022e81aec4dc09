"""Records that wait on the local disk for a log that cannot take them, and the way back into the log.

A spool is a folder of small files of the log's own lines (infra/log/files.py). A process writes to files of its own
and holds a lock on each for as long as it lives; the kernel lets go of the locks of a process that died, and whoever
finds such a file delivers it. A file is delivered whole and then removed: a crash in between delivers some records
again, so readers count an event_id once, as they do anyway. Knows nothing of what the records mean.
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
"""A log that failed is tried again after the first pause, which doubles up to the longest."""
ADOPT_SECONDS = 2.0
"""How often a process looks for files that a dead one left."""
DELIVER_SECONDS = 0.2
"""How long records gather before they go to the log together."""
HANGING_SECONDS = 1.0
"""A log that takes this long to answer is taken for one that refuses."""


@dataclass(eq=False)
class _Part:
    """A file of the spool that this process holds."""

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
    """`most_bytes` bounds what this process keeps in `folder`, adopted files included. Safe to use from threads."""

    def __init__(self, folder: Path, *, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._parts: list[_Part] = []
        self._lock = threading.Lock()
        self._made = 0
        self._taken = 0

    @property
    def records(self) -> int:
        """Records that wait, of the files that this process holds."""
        return sum(part.records for part in self._parts)

    @property
    def size(self) -> int:
        return sum(part.size - part.position for part in self._parts)

    def append(self, line: bytes) -> bool:
        """Keep a line of encode_line, in case this process dies; False when the spool is full or the disk refuses."""
        with self._lock:
            if self.size + len(line) > self._most_bytes:
                return False
            try:
                part = self._parts[-1] if self._parts and self._parts[-1].open else self._begin()
                _write(part, line)
            except OSError as error:
                logger.error("the spool %s refuses the write: %s", self._folder, error)
                return False
            return True

    def _begin(self) -> _Part:
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            self._made += 1
            path = self._folder / f"{time.time_ns():020d}-{os.getpid()}-{self._made}.spool"
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
            if _hold(fd, path):
                self._parts.append(_Part(path, fd))
                return self._parts[-1]
            os.close(fd)  # another process was quicker to adopt it; it held nothing yet

    def sync(self) -> None:
        """Let what was appended outlive a power cut too."""
        with self._lock:
            part = self._parts[-1] if self._parts and self._parts[-1].unsynced else None
            if part is not None:
                part.unsynced = False
                os.fsync(part.fd)

    def adopt(self) -> int:
        """Take over the files of processes that died; returns how many."""
        held = {part.path for part in self._parts}
        found = 0
        for path in sorted(self._folder.glob("*.spool")):
            if path in held:
                continue
            try:
                fd = os.open(path, os.O_RDWR | os.O_APPEND)
            except FileNotFoundError:
                continue
            if not _hold(fd, path):
                os.close(fd)
                continue
            part = _Part(path, fd, size=os.fstat(fd).st_size, open=False)
            part.records = sum(1 for _ in _lines(part))
            with self._lock:
                # Before what this process wrote: it is older.
                self._parts.insert(found, part)
            found += 1
        return found

    def oldest(self, most: int) -> list[tuple[str, bytes]]:
        """Up to `most` (key, value) pairs that wait longest; their file takes no more from then on."""
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
                    if len(pairs) == most:
                        break
                self._taken = end
                if pairs:
                    return pairs
                self._remove(part)
            return []

    def delivered(self, count: int) -> None:
        """The log holds the `count` pairs of the last call of `oldest`."""
        with self._lock:
            part = self._parts[0]
            part.position, part.records = self._taken, part.records - count
            if next(_lines(part), None) is None:
                self._remove(part)

    def close(self) -> None:
        """Let go of all files: another process may deliver them."""
        with self._lock:
            for part in self._parts:
                os.close(part.fd)
            self._parts.clear()

    def _remove(self, part: _Part) -> None:
        part.path.unlink(missing_ok=True)
        os.close(part.fd)
        self._parts.remove(part)


def _hold(fd: int, path: Path) -> bool:
    """Lock a file for the life of this process; False when another process holds or has removed it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(fd).st_nlink > 0


def _write(part: _Part, line: bytes) -> None:
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


def _lines(part: _Part) -> Iterator[tuple[int, bytes]]:
    """(position behind it, line without LF) of every whole line that is not delivered; a torn last one is left out."""
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
    """One topic of a log, written by way of a spool: whoever appends waits for no server and no disk.

    A record is in a file of this machine when `append` returns, which outlives the process; a thread takes what
    gathered there to the log, in order and many at once, every DELIVER_SECONDS. While the log refuses, it keeps the
    records, and sees to it that they outlive a power cut too.
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
        """clock: seconds since the epoch; on_lost: a record is gone for good; on_change: (records, bytes) that wait."""
        self._log = log
        self._topic = topic
        self._spool = spool
        self._clock = clock
        self._on_lost = on_lost
        self._on_change = on_change
        self._down_until = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self._failing = False
        self._begun = float("inf")
        self._halt = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Deliver what an earlier process left, and from now on whatever comes; the first `append` does so too."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"spooled {self._topic}", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Deliver what waits, if the log takes it; else leave it in the spool to the next start."""
        self._halt.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            if not self._thread.is_alive():
                self._spool.close()

    def append(self, key: str, value: bytes) -> bool:
        """Keep a record. False: the log does not take records just now, or this one is lost and counted as such."""
        try:
            line = encode_line(int(self._clock() * 1000), key, value)
        except LogError:
            logger.exception("a record for %s cannot stand in any log", self._topic)
            self._on_lost()
            return False
        if self._thread is None:
            self.start()
        if not self._spool.append(line):
            self._on_lost()
            logger.error("one of the %s is lost: the log is down, and the spool takes no more", self._topic)
            return False
        return not self._failing and time.monotonic() - self._begun < HANGING_SECONDS

    def _run(self) -> None:
        next_look, told, pause = 0.0, (0, 0), 0.0  # at once what an earlier process left
        while not self._halt.wait(pause):
            pause = DELIVER_SECONDS
            try:
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + ADOPT_SECONDS
                    self._spool.adopt()
                if time.monotonic() >= self._down_until:
                    self._deliver()
                if self._failing:
                    self._spool.sync()
                if (waits := (self._spool.records, self._spool.size)) != told:
                    self._on_change(*waits)
                    told = waits
            except Exception:
                logger.exception("the spool of %s stumbled; going on", self._topic)
                self._halt.wait(1.0)
        if not self._failing:
            self._deliver()

    def _deliver(self) -> None:
        """Take to the log what waits, until it refuses."""
        while pairs := self._spool.oldest(BATCH):
            self._begun = time.monotonic()
            try:
                self._log.append(self._topic, pairs)
            except Exception as error:  # whatever the log's client raises
                self._down(str(error))
                return
            finally:
                self._begun = float("inf")
            self._spool.delivered(len(pairs))
            if self._failing:
                logger.info("the event log takes %s again", self._topic)
            self._failing, self._pause = False, FIRST_PAUSE_SECONDS

    def _down(self, why: str) -> None:
        if not self._failing:
            logger.error("%s stay in the spool, the event log is down: %s", self._topic, why)
        self._failing = True
        self._down_until = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
