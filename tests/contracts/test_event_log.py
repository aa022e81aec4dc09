"""What every event log promises (infra.log.client.EventLog), whichever adapter holds it."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.local import processes
from infra.log.client import START, EventLog, LogError, PartitionShare, Position, Record, follow
from infra.log.open import open_log
from infra.settings import Settings

ROOT = Path(__file__).parents[2]
APPEND_MANY = """
import sys
from infra.log.open import open_log
from infra.settings import Settings
log, name = open_log(Settings()), sys.argv[1]
for number in range(int(sys.argv[2])):
    log.append("t", [(name, b'{"n": %d, "part": %d}' % (number, part)) for part in range(3)])
"""

Open = Callable[[], EventLog]


@pytest.fixture(params=["files", pytest.param("kafka", marks=pytest.mark.slow)])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of one adapter, with nothing in its log."""
    if request.param == "files":
        return Settings(data_dir=tmp_path)
    kafka: Settings = request.getfixturevalue("kafka_settings")
    return kafka


@pytest.fixture
def open_again(settings: Settings) -> Open:
    """Opens the same log again, as another process would."""
    return lambda: open_log(settings)


@pytest.fixture
def log(open_again: Open) -> EventLog:
    return open_again()


def pairs(*values: str, key: str = "key") -> list[tuple[str, bytes]]:
    return [(key, f'"{value}"'.encode()) for value in values]


def drain(log: EventLog, topic: str = "t", position: Position = START, **options: int) -> tuple[list[Record], Position]:
    """Everything from a position to the end, and the position reached."""
    read: list[Record] = []
    while not position.covers(log.end(topic)):
        records = log.read(topic, position, **options)
        read += records
        position = position.after(records)
    return read, position


def values(log: EventLog, topic: str = "t", position: Position = START) -> list[str]:
    return [record.value.decode().strip('"') for record in drain(log, topic, position)[0]]


def test_what_was_appended_is_read_as_it_was_by_everybody(log: EventLog, open_again: Open) -> None:
    odd = '{"a": "é\u2028\t"}'.encode()
    log.append("t", [("käse", odd), ("", b"{}")])
    log.append("t", pairs("c", key="käse"))
    for reader in (log, open_again()):
        records, _ = drain(reader)
        assert sorted((record.key, record.value) for record in records) == [
            ("", b"{}"),
            ("käse", b'"c"'),
            ("käse", odd),
        ]
        assert [record.value for record in records if record.key == "käse"] == [odd, b'"c"']
        assert len({record.partition for record in records if record.key == "käse"}) == 1
        assert {record.topic for record in records} == {"t"}
        assert len({record.origin for record in records}) == 3


def test_positions_lead_from_record_to_record_and_are_known_by_their_text(log: EventLog) -> None:
    for number in range(20):
        log.append("t", pairs(str(number), key=f"key-{number % 7}"))
    position, seen = START, []
    while records := log.read("t", Position.parse(str(position)), max_records=1):
        assert not position.covers(log.end("t"))
        seen += records
        position = position.after(records)
    assert position == log.end("t")
    assert position.covers(log.end("t"))
    assert sorted(record.origin for record in seen) == sorted(record.origin for record in drain(log)[0])
    for partition in {record.partition for record in seen}:
        own = [record.offset for record in seen if record.partition == partition]
        assert own == sorted(set(own))


def test_the_end_moves_with_every_append(log: EventLog) -> None:
    before = log.end("t")
    assert before == START
    for value in "abc":
        log.append("t", pairs(value))
        assert log.end("t").covers(before)
        assert not before.covers(log.end("t"))
        before = log.end("t")
    assert log.read("t", before) == []


def test_topics_are_apart_and_an_unknown_one_is_empty(log: EventLog) -> None:
    log.append("one", pairs("a"))
    log.append("two", pairs("b"))
    assert (values(log, "one"), values(log, "two"), values(log, "three")) == (["a"], ["b"], [])
    assert (log.end("three"), log.read("three", START), log.latest("three", 5)) == (START, [], [])
    assert log.size("three").records == 0
    log.append("one", [])
    assert values(log, "one") == ["a"]


def test_the_latest_records_are_found_from_the_end(log: EventLog) -> None:
    assert log.latest("t", 3) == []
    log.append("t", pairs(*(str(number) * 400 for number in range(50))))
    assert [record.value[1:2] for record in log.latest("t", 3)] == [b"4", b"4", b"4"]
    assert log.latest("t", 3) == drain(log)[0][-3:]
    assert len(log.latest("t", 1000)) == 50
    assert log.latest("t", 0) == []


def test_the_latest_records_of_many_keys_are_those_of_the_last_append(log: EventLog) -> None:
    log.append("t", [(f"old-{number}", b"{}") for number in range(30)])
    threading.Event().wait(0.02)  # times are milliseconds
    log.append("t", [(f"new-{number}", b"{}") for number in range(10)])
    assert {record.key for record in log.latest("t", 10)} == {f"new-{number}" for number in range(10)}


def test_what_a_topic_holds_is_counted(log: EventLog) -> None:
    for total in (1, 20):
        log.append("t", [(f"key-{number}", b'{"n": 1}') for number in range(total)])
    held = log.size("t")
    assert (held.records, held.whole) == (21, True)
    assert held.size_bytes is None or held.size_bytes > 21 * 8


def test_a_group_goes_on_where_it_committed(log: EventLog, open_again: Open) -> None:
    log.append("t", pairs("a", "b", "c"))
    assert log.committed("readers", "t") == START
    (first, *_) = log.read("t", START, max_records=1)
    log.commit("readers", "t", START.after([first]))
    again = open_again()
    assert values(again, position=again.committed("readers", "t")) == ["b", "c"]
    assert (again.committed("others", "t"), again.committed("readers", "u")) == (START, START)
    log.commit("readers", "t", START)  # names no partition: changes nothing
    assert log.committed("readers", "t") == START.after([first])
    log.commit("readers", "t", log.end("t"))
    assert log.committed("readers", "t").covers(log.end("t"))


def test_sharing_readers_see_every_record_once_and_a_key_is_one_readers(log: EventLog, open_again: Open) -> None:
    log.append("t", [(f"card-{number % 40}", b'{"n": %d}' % number) for number in range(200)])
    seen: list[dict[str, list[bytes]]] = []
    for index in range(2):
        share, position, own = PartitionShare(index, 2), START, dict[str, list[bytes]]()
        while records := log.read("t", position, max_records=7, share=share):
            assert all(share.holds(record.partition) for record in records)
            for record in records:
                own.setdefault(record.key, []).append(record.value)
            position = position.after(records)
        log.commit("sharing", "t", position)
        seen.append(own)
    assert not set(seen[0]) & set(seen[1])
    both = seen[0] | seen[1]
    assert both == {f"card-{card}": [b'{"n": %d}' % number for number in range(card, 200, 40)] for card in range(40)}
    committed = open_again().committed("sharing", "t")
    assert committed == log.end("t")
    assert committed.of(PartitionShare(0, 2)).covers(log.end("t").of(PartitionShare(0, 2)))


@pytest.mark.parametrize("key", ["tab\there", "line\nfeed", "half\ud800"])
def test_a_key_that_cannot_be_kept_is_refused_with_the_whole_call(log: EventLog, key: str) -> None:
    with pytest.raises(LogError, match="key"):
        log.append("t", [("good", b"{}"), (key, b"{}")])
    with pytest.raises(LogError, match="line feed"):
        log.append("t", [("good", b"{\n}")])
    assert values(log) == []


def test_threads_that_append_together_lose_and_mix_nothing(log: EventLog) -> None:
    def append(name: int) -> None:
        for number in range(40):
            log.append("t", [(str(name), b'"%d-%d-%d"' % (name, number, part)) for part in range(3)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(8)))
    records, _ = drain(log)
    assert len(records) == 8 * 40 * 3
    for name in range(8):
        own = [record.value for record in records if record.key == str(name)]
        assert own == [b'"%d-%d-%d"' % (name, number, part) for number in range(40) for part in range(3)]


def test_threads_that_read_together_each_see_everything(log: EventLog) -> None:
    log.append("t", [(f"key-{number % 9}", b'{"n": %d}' % number) for number in range(300)])

    def read(_: int) -> list[str]:
        return sorted(record.origin for record in drain(log, max_records=20)[0])

    with ThreadPoolExecutor(6) as pool:
        seen = list(pool.map(read, range(6)))
    assert len(set(seen[0])) == 300
    assert all(value == seen[0] for value in seen)


def test_processes_that_append_at_once_lose_and_mix_nothing(log: EventLog, settings: Settings) -> None:
    environment = {**processes.environment(settings), "PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen([sys.executable, "-c", APPEND_MANY, name, "60"], env=environment) for name in ("a", "b", "c")
    ]
    followed, stop = [], threading.Event()
    for records in follow(log, "t", START, stop=stop):  # a reader beside the writers sees each record once, whole
        followed += records
        if len(followed) >= 3 * 60 * 3:
            stop.set()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert sorted(record.origin for record in followed) == sorted(record.origin for record in drain(log)[0])
    for name in ("a", "b", "c"):
        own = [record.value for record in followed if record.key == name]
        assert own == [b'{"n": %d, "part": %d}' % (number, part) for number in range(60) for part in range(3)]


def test_following_waits_at_the_end_until_it_is_stopped(log: EventLog) -> None:
    log.append("t", pairs("a"))
    stop, seen = threading.Event(), []

    def read() -> None:
        for records in follow(log, "t", START, stop=stop, poll_seconds=0.001):
            seen.extend(record.value for record in records)

    reader = threading.Thread(target=read)
    reader.start()
    log.append("t", pairs("b"))
    deadline = threading.Event()
    while len(seen) < 2 and not deadline.wait(0.005):
        pass
    stop.set()
    reader.join(5)
    assert (seen, reader.is_alive()) == ([b'"a"', b'"b"'], False)


OFFSETS = st.dictionaries(st.integers(0, 30), st.integers(0, 2**40), max_size=8)


@given(OFFSETS, OFFSETS)
def test_a_position_is_its_text_and_covers_what_it_is_not_behind(
    offsets: dict[int, int], other: dict[int, int]
) -> None:
    position, further = Position(offsets), Position({name: offset + 1 for name, offset in offsets.items()})
    assert Position.parse(str(position)) == position
    assert position.covers(START)
    assert further.covers(position)
    assert position.covers(further) == (not offsets)
    assert (position.covers(Position(other)) and Position(other).covers(position)) == (position == Position(other))
    parts = [position.of(PartitionShare(index, 3)).offsets for index in range(3)]
    assert Position({**parts[0], **parts[1], **parts[2]}) == position


@pytest.mark.parametrize("text", ["", "5", "a:1", "0:-1", "0:1,", "0:1 ", "0:²", "1:2:3", "0:" + "9" * 30])
def test_other_text_is_no_position(text: str) -> None:
    with pytest.raises(ValueError, match="is not a position"):
        Position.parse(text)
