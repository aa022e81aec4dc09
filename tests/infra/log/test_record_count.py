"""Counting the records of a topic: correct after every append, cheap the second time, never beyond its time budget."""

from pathlib import Path

import pytest

from infra.log.files import FileLog
from infra.log.record_count import RecordCounter


@pytest.fixture
def log(tmp_path: Path) -> FileLog:
    return FileLog(tmp_path, segment_bytes=2_000)


def fill(log: FileLog, count: int, *, start: int = 0) -> None:
    for number in range(start, start + count):
        log.append("t", [(f"user-{number}", b'{"event": "%d"}' % number)])


def test_records_are_counted_over_segments_and_appends(log: FileLog, tmp_path: Path) -> None:
    counter = RecordCounter()
    assert counter.count(tmp_path / "t").records == 0
    for total in (1, 150, 151):
        fill(log, total - counter.count(tmp_path / "t").records)
        held = counter.count(tmp_path / "t")
        assert (held.records, held.whole) == (total, True)
        assert held.size_bytes == log.end_offset("t")
        assert log.size("t") == held
    assert len(list((tmp_path / "t").glob("*.log"))) > 2


def test_a_count_that_takes_too_long_resumes_at_the_next_call(log: FileLog, tmp_path: Path) -> None:
    fill(log, 150)
    ticks = iter(range(1_000))
    counter = RecordCounter(budget_seconds=1.5, clock=lambda: float(next(ticks)))
    first = counter.count(tmp_path / "t")
    assert 0 < first.records < 150
    assert not first.whole
    while not (held := counter.count(tmp_path / "t")).whole:
        assert held.records < 150
    assert held.records == 150


def test_a_segment_that_was_repaired_is_counted_again(log: FileLog, tmp_path: Path) -> None:
    fill(log, 3)
    counter = RecordCounter()
    (path,) = (tmp_path / "t").glob("*.log")
    whole = path.read_bytes()
    path.write_bytes(whole + b"torn")
    assert counter.count(tmp_path / "t").records == 3
    path.write_bytes(whole)
    fill(log, 1, start=3)
    assert counter.count(tmp_path / "t").records == 4
