"""The console reads from the log its size, the last append, and who was active last."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from apps.console.log_size import LogSizeReader
from infra import topics
from infra.log.files import FileLog

SECOND = 1_795_348_800


@pytest.fixture
def log(tmp_path: Path) -> FileLog:
    return FileLog(tmp_path, segment_bytes=2_000, clock=lambda: SECOND)


def fill(log: FileLog, count: int, *, start: int = 0) -> None:
    for number in range(start, start + count):
        log.append(topics.SHOP, [(f"user-{number}", b'{"event": "%d"}' % number)])


def test_a_topic_is_measured_with_its_last_append(log: FileLog) -> None:
    log_size = LogSizeReader(log)
    assert (log_size.read(topics.SHOP).records, log_size.read(topics.SHOP).last_append) == (0, None)
    fill(log, 150)
    reading = log_size.read(topics.SHOP)
    assert (reading.topic, reading.records, reading.whole) == (topics.SHOP, 150, True)
    assert reading.size_bytes == log.end_offset(topics.SHOP)
    assert reading.last_append == datetime.fromtimestamp(SECOND, tz=UTC)


def test_the_last_keys_come_latest_first_and_once(log: FileLog) -> None:
    fill(log, 150)
    fill(log, 1, start=148)
    assert LogSizeReader(log).recent_keys(topics.SHOP, 3) == ("user-148", "user-149", "user-147")
    assert LogSizeReader(log).recent_keys(topics.LABELS, 3) == ()


def test_a_damaged_record_is_skipped(log: FileLog, tmp_path: Path) -> None:
    fill(log, 3)
    (path,) = (tmp_path / topics.SHOP).glob("*.log")
    path.write_bytes(path.read_bytes().replace(b"user-2", b"user-X"))
    assert LogSizeReader(log).recent_keys(topics.SHOP, 5) == ("user-1", "user-0")


def test_the_first_record_behind_a_moment(tmp_path: Path) -> None:
    seconds = iter((100, 200, 300))
    log = FileLog(tmp_path, clock=lambda: next(seconds))
    fill(log, 3)
    log_size = LogSizeReader(log)

    def after(second: int) -> float | None:
        appended = log_size.first_after(topics.SHOP, datetime.fromtimestamp(second, tz=UTC))
        return appended.timestamp() if appended else None

    assert [after(50), after(100), after(250), after(300)] == [100, 200, 300, None]
