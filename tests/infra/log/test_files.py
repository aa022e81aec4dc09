"""The log on segment files: its lines, its segments, and what it does with damaged ones."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.log.client import START, LogError, Position
from infra.log.files import FileLog, decode_line, encode_line

KEYS = st.text(st.characters(exclude_characters="\t\n", exclude_categories=["Cs"]), max_size=40)
VALUES = st.binary(max_size=200).map(lambda value: value.replace(b"\n", b" "))


@pytest.fixture
def log(tmp_path: Path) -> FileLog:
    return FileLog(tmp_path, clock=lambda: 1_795_000_000.5)


def segments(log_folder: Path) -> list[Path]:
    return sorted((log_folder / "t").glob("*.log"))


def fill(log: FileLog, count: int, *, start: int = 0) -> list[bytes]:
    """Appends records in a call each; returns their values."""
    added = [b'{"n": %05d}' % number for number in range(start, start + count)]
    for value in added:
        log.append("t", [("key", value)])
    return added


def values(log: FileLog, position: Position = START) -> list[bytes]:
    return [record.value for record in log.read("t", position, max_records=100_000)]


def at(offset: int) -> Position:
    return Position({0: offset})


def damage(path: Path, position: int, new: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(new)


@given(st.integers(0, 2**53), KEYS, VALUES)
def test_a_line_decodes_to_what_it_encodes(timestamp: int, key: str, value: bytes) -> None:
    line = encode_line(timestamp, key, value)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_line(line[:-1]) == (timestamp, key, value)


@given(KEYS, VALUES, st.data())
def test_a_line_with_a_wrong_byte_is_no_other_record(key: str, value: bytes, data: st.DataObject) -> None:
    line = encode_line(7, key, value)[:-1]
    position = data.draw(st.integers(0, len(line) - 1))
    wrong = bytes([data.draw(st.integers(0, 255).filter(lambda byte: byte != line[position]))])
    assert decode_line(line[:position] + wrong + line[position + 1 :]) in (None, (7, key, value))
    assert decode_line(line[:position]) is None


@pytest.mark.parametrize("line", [b"", b"zzzzzzzz\t1\tk\t{}", b"00000000\t", b"00000000", b"\xff" * 30])
def test_garbage_is_no_record(line: bytes) -> None:
    assert decode_line(line) is None


def test_records_carry_the_time_of_their_append(log: FileLog) -> None:
    fill(log, 1)
    assert log.read("t", START)[0].timestamp_ms == 1_795_000_000_500


def test_segments_are_closed_at_their_size_and_read_as_one(tmp_path: Path) -> None:
    log = FileLog(tmp_path, segment_bytes=200)
    expected = fill(log, 30)
    paths = segments(tmp_path)
    assert len(paths) > 3
    assert all(path.stat().st_size < 300 for path in paths)
    ends = [int(path.stem) + path.stat().st_size for path in paths]
    assert ends[:-1] == [int(path.stem) for path in paths[1:]]
    assert values(log) == expected
    assert log.end_offset("t") == ends[-1]
    for record in log.read("t", START):
        assert log.read("t", at(record.offset), max_records=1) == [record]
    # Another writer continues in the last segment.
    assert values(FileLog(tmp_path, segment_bytes=200)) == expected
    fill(FileLog(tmp_path, segment_bytes=200), 1, start=30)
    assert len(values(log)) == 31


def test_align_finds_the_next_line_across_segments(tmp_path: Path) -> None:
    log = FileLog(tmp_path, segment_bytes=200)
    fill(log, 12)
    starts = [record.offset for record in log.read("t", START)] + [log.end_offset("t")]
    for offset in range(log.end_offset("t") + 1):
        assert log.align("t", offset) == next(start for start in starts if start >= offset)
    assert log.align("t", log.end_offset("t") + 100) == log.end_offset("t")
    assert log.align("nothing", 5) == 0


def test_a_torn_last_line_is_moved_aside_and_logged(
    log: FileLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = fill(log, 3)
    end, (path,) = log.end("t"), segments(tmp_path)
    with path.open("ab") as file:
        file.write(b'0badc0de\t1\tkey\t{"half')
    assert (values(log), log.end("t")) == (expected, end)
    with caplog.at_level(logging.WARNING):
        expected += fill(FileLog(tmp_path), 1, start=3)
    assert "dropped 21 bytes" in caplog.text
    assert path.with_suffix(".torn").read_bytes() == b'0badc0de\t1\tkey\t{"half\n'
    assert values(log) == expected
    assert log.read("t", end)[0].offset == end.offsets[0]


def test_a_torn_line_in_a_full_segment_is_moved_aside_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = FileLog(tmp_path, segment_bytes=100)
    expected = fill(log, 2)
    path = segments(tmp_path)[-1]
    with path.open("ab") as file:
        file.write(b"x" * 500)
    expected += fill(log, 4, start=2)
    assert path.with_suffix(".torn").read_bytes() == b"x" * 500 + b"\n"
    assert "dropped 500 bytes" in caplog.text
    assert values(log) == expected


@pytest.mark.parametrize(
    ("position", "new", "lost"),
    [(20, b"#", 1), (20, b"\n", 1), (-1, b"#", 2)],
    ids=["a wrong byte", "a line feed inside", "the line feed is gone"],
)
def test_a_damaged_line_is_skipped_and_counted_once(
    log: FileLog, tmp_path: Path, caplog: pytest.LogCaptureFixture, position: int, new: bytes, lost: int
) -> None:
    expected = fill(log, 5)
    records, (path,) = log.read("t", START), segments(tmp_path)
    damage(path, (records[1].offset if position >= 0 else records[2].offset) + position, new)
    assert values(log) == expected[:1] + expected[1 + lost :]
    counted = log.skipped_lines
    assert counted == new.count(b"\n") + 1
    assert values(log) == expected[:1] + expected[1 + lost :]
    assert log.skipped_lines == counted
    assert caplog.text.count("skipped a damaged record") == counted
    assert log.read("t", at(records[0].next_offset), max_records=1)[0].value == expected[1 + lost]


def test_a_damaged_line_at_the_end_does_not_stop_a_reader(log: FileLog, tmp_path: Path) -> None:
    expected = fill(log, 2)
    damage(segments(tmp_path)[0], log.read("t", START)[1].offset, b"00000000")
    position = START.after(log.read("t", START))
    for _ in range(3):
        assert log.read("t", position) == []
    assert log.skipped_lines == 1
    new = fill(log, 1, start=2)
    assert (values(log, position), values(log)) == (new, expected[:1] + new)


def test_a_truncated_segment_loses_only_its_own_end(tmp_path: Path) -> None:
    log = FileLog(tmp_path, segment_bytes=200)
    expected = fill(log, 20)
    first, last = segments(tmp_path)[0], segments(tmp_path)[-1]
    lines_of_first, lines_of_last = first.read_bytes().count(b"\n"), last.read_bytes().count(b"\n")
    for path in (first, last):
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 5)
    kept = expected[: lines_of_first - 1] + expected[lines_of_first:-1]
    assert lines_of_last >= 1
    assert values(log) == kept
    assert values(log) + fill(log, 2, start=20) == values(log)


def test_a_damaged_commit_is_named(log: FileLog, tmp_path: Path) -> None:
    log.commit("readers", "t", at(5))
    for content in ("", "[]", "{}", "5", '{"offset": "x"}'):
        (tmp_path / "t" / "offsets" / "readers.json").write_text(content)
        with pytest.raises(LogError, match=r"readers\.json is damaged; remove it"):
            log.committed("readers", "t")
