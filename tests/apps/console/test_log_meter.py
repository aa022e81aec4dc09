"""Reading how much the log holds: right after every append, cheap the second time, never more than the tail parsed."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from apps.console.log_meter import LogMeter
from infra import topics
from infra.log.files import FileLog

SECOND = 1_795_348_800


@pytest.fixture
def log(tmp_path: Path) -> FileLog:
    return FileLog(tmp_path, segment_bytes=2_000, clock=lambda: SECOND)


def fill(log: FileLog, count: int, *, start: int = 0) -> None:
    for number in range(start, start + count):
        log.append(topics.SHOP, [(f"user-{number}", b'{"event": "%d"}' % number)])


def test_records_are_counted_over_segments_and_appends(log: FileLog, tmp_path: Path) -> None:
    meter = LogMeter(tmp_path)
    assert (meter.read(topics.SHOP).records, meter.read(topics.SHOP).last_append) == (0, None)
    for total in (1, 150, 151):
        fill(log, total - meter.read(topics.SHOP).records)
        reading = meter.read(topics.SHOP)
        assert (reading.records, reading.whole) == (total, True)
        assert reading.size_bytes == log.end(topics.SHOP)
        assert reading.last_append == datetime.fromtimestamp(SECOND, tz=UTC)
    assert len(list((tmp_path / topics.SHOP).glob("*.log"))) > 2


def test_a_count_that_takes_too_long_goes_on_at_the_next_look(log: FileLog, tmp_path: Path) -> None:
    fill(log, 150)
    ticks = iter(range(1_000))
    meter = LogMeter(tmp_path, budget_seconds=1.5, clock=lambda: float(next(ticks)))
    first = meter.read(topics.SHOP)
    assert 0 < first.records < 150
    assert not first.whole
    while not (reading := meter.read(topics.SHOP)).whole:
        assert reading.records < 150
    assert reading.records == 150


def test_a_segment_that_was_mended_is_counted_anew(log: FileLog, tmp_path: Path) -> None:
    fill(log, 3)
    meter = LogMeter(tmp_path)
    (path,) = (tmp_path / topics.SHOP).glob("*.log")
    whole = path.read_bytes()
    path.write_bytes(whole + b"torn")
    assert meter.read(topics.SHOP).records == 3
    path.write_bytes(whole)
    fill(log, 1, start=3)
    assert meter.read(topics.SHOP).records == 4


def test_the_last_keys_come_latest_first_and_once(log: FileLog, tmp_path: Path) -> None:
    fill(log, 150)
    fill(log, 1, start=148)
    assert LogMeter(tmp_path).recent_keys(topics.SHOP, 3) == ("user-148", "user-149", "user-147")
    assert LogMeter(tmp_path).recent_keys(topics.LABELS, 3) == ()


def test_damage_in_the_tail_is_passed_over(log: FileLog, tmp_path: Path) -> None:
    fill(log, 3)
    (path,) = (tmp_path / topics.SHOP).glob("*.log")
    path.write_bytes(path.read_bytes().replace(b"user-2", b"user-X"))
    assert LogMeter(tmp_path).recent_keys(topics.SHOP, 5) == ("user-1", "user-0")


def test_the_first_record_behind_a_moment(tmp_path: Path) -> None:
    seconds = iter((100, 200, 300))
    log = FileLog(tmp_path, clock=lambda: next(seconds))
    fill(log, 3)
    meter = LogMeter(tmp_path)

    def after(second: int) -> float | None:
        found = meter.first_after(topics.SHOP, datetime.fromtimestamp(second, tz=UTC))
        return found.timestamp() if found else None

    assert [after(50), after(100), after(250), after(300)] == [100, 200, 300, None]
