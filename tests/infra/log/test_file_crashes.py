"""Crashes and full disks: acknowledged records stay, and no half-written record is ever returned."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.log import files
from infra.log.client import START, LogError, LogFullError
from infra.log.files import FileLog

ROOT = Path(__file__).parents[3]
WRITER = """
import sys
from pathlib import Path
from infra.log.files import FileLog
log, number = FileLog(Path(sys.argv[1]), segment_bytes=20_000), int(sys.argv[2])
while True:
    values = [b'{"n": %d, "pad": "%s"}' % (number + part, b"x" * 700) for part in range(5)]
    log.append("t", [("key", value) for value in values])
    number += len(values)
    print(number, flush=True)
"""
LIMITED = """
import resource, signal, sys
from pathlib import Path
from infra.log.client import LogFullError
from infra.log.files import FileLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
log, stored = FileLog(Path(sys.argv[1])), 0
try:
    while True:
        log.append("t", [("key", b'{"n": %d, "pad": "%s"}' % (stored + part, b"x" * 100)) for part in range(3)])
        stored += 3
except LogFullError as error:
    print(stored, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.append("t", [("key", b'{"n": %d}' % stored)])
"""


def run(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def numbers(log: FileLog) -> list[int]:
    return [json.loads(record.value)["n"] for record in log.read("t", START, max_records=1_000_000)]


def test_what_a_killed_writer_had_acknowledged_is_stored(tmp_path: Path) -> None:
    wait = random.Random(5)
    acknowledged, present = 0, 0
    for _ in range(5):
        with run(WRITER, tmp_path, present) as writer:
            assert writer.stdout is not None
            first = writer.stdout.readline()
            time.sleep(wait.uniform(0, 0.03))
            writer.kill()
            printed = (first + writer.stdout.read()).split("\n")[:-1]  # without what may be half a number
        acknowledged = int(printed[-1])
        log = FileLog(tmp_path)
        assert len(numbers(log)) >= acknowledged
        assert numbers(log) == list(range(len(numbers(log))))
        assert log.skipped_lines == 0
        present = len(numbers(log))
    assert acknowledged > 0


def test_a_file_that_may_not_grow_is_reported_and_nothing_half_written_is_kept(tmp_path: Path) -> None:
    writer = run(LIMITED, tmp_path)
    output, _ = writer.communicate(timeout=30)
    stored = int(output.split()[0])
    assert writer.returncode == 0
    assert "refused the write (File too large); free space there" in output
    log = FileLog(tmp_path)
    assert stored > 10
    assert numbers(log) == list(range(stored + 1))
    assert log.skipped_lines == 0
    assert not list(tmp_path.glob("t/*.torn"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yields a folder on a file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_reported_and_the_log_continues_when_there_is_room(small_disk: Path) -> None:
    log, ballast = FileLog(small_disk / "log", segment_bytes=20_000), small_disk / "ballast"
    ballast.write_bytes(b"x" * 100_000)
    stored = 0

    def append_for_ever() -> None:
        nonlocal stored
        while True:
            log.append("t", [("key", b'{"n": %d, "pad": "%s"}' % (stored + part, b"x" * 500)) for part in range(4)])
            stored += 4

    for _ in range(2):
        with pytest.raises(LogFullError, match="No space left on device"):
            append_for_ever()
        assert numbers(FileLog(small_disk / "log")) == list(range(stored))
        os.truncate(ballast, ballast.stat().st_size - 50_000)
    log.append("t", [("key", b'{"n": %d}' % stored)])
    assert numbers(log) == list(range(stored + 1))
    assert log.skipped_lines == 0


def test_no_room_to_move_a_torn_line_aside_is_a_full_disk_too(small_disk: Path) -> None:
    log, ballast = FileLog(small_disk), small_disk / "ballast"
    log.append("t", [("key", b'{"n": 0}')])
    (segment,) = (small_disk / "t").glob("*.log")
    with segment.open("ab") as file:
        file.write(b"y" * 5000)
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(b"x" * 2**20)
    with pytest.raises(LogFullError):
        log.append("t", [("key", b'{"n": 1}')])
    ballast.unlink()
    log.append("t", [("key", b'{"n": 1}')])
    assert numbers(log) == [0, 1]
    assert b"y" * 5000 in segment.with_suffix(".torn").read_bytes()


def test_a_reader_does_not_go_past_what_a_failing_write_takes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = FileLog(tmp_path), FileLog(tmp_path)
    writer.append("t", [("key", b'{"n": 0}')])
    end, seen = reader.end("t"), []
    observer = threading.Thread(target=lambda: seen.append(reader.end("t")))

    def fail(fd: int) -> None:
        observer.start()
        observer.join(0.1)  # it looks while the file holds whole lines that will be taken back
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fail)
        with pytest.raises(LogFullError):
            writer.append("t", [("key", b'{"n": 8}')] * 20)
    observer.join(5)
    assert seen == [end]
    writer.append("t", [("key", b'{"n": 1}')])
    assert numbers(reader) == [0, 1]


def test_all_callers_of_a_shared_write_that_fails_get_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = FileLog(tmp_path)
    log.append("t", [("key", b'{"n": 0}')])
    entered, resume = threading.Event(), threading.Event()
    outcomes: list[type[BaseException]] = []

    def interrupted(fd: int) -> None:
        entered.set()
        resume.wait(5)
        raise KeyboardInterrupt

    def append() -> None:
        try:
            log.append("t", [("key", b'{"n": 1}')])
        except BaseException as error:
            outcomes.append(type(error))

    monkeypatch.setattr(files.os, "fsync", interrupted)
    callers = [threading.Thread(target=append) for _ in range(4)]
    callers[0].start()
    entered.wait(5)
    for caller in callers[1:]:
        caller.start()
    time.sleep(0.1)  # the three collect while the first one writes
    resume.set()
    for caller in callers:
        caller.join(10)
    assert len(outcomes) == 4
    assert set(outcomes) == {KeyboardInterrupt, LogError}
