"""What every event log promises (infra.log.client.EventLog), whichever adapter holds it."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.log.client import EventLog, LogError, follow, open_log
from infra.settings import Settings

ROOT = Path(__file__).parents[2]
APPEND_MANY = """
import sys
from infra.log.client import open_log
from infra.settings import Settings
log, name = open_log(Settings()), sys.argv[1]
for number in range(int(sys.argv[2])):
    log.append("t", [(name, b'{"n": %d, "part": %d}' % (number, part)) for part in range(3)])
"""

Open = Callable[[], EventLog]


@pytest.fixture(params=["files"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of one adapter, with nothing in its log."""
    return {"files": Settings(data_dir=tmp_path)}[request.param]


@pytest.fixture
def open_again(settings: Settings) -> Open:
    """Opens the same log anew, as another process would."""
    return lambda: open_log(settings)


@pytest.fixture
def log(open_again: Open) -> EventLog:
    return open_again()


def pairs(*values: str) -> list[tuple[str, bytes]]:
    return [("key", f'"{value}"'.encode()) for value in values]


def values(log: EventLog, topic: str = "t", offset: int = 0) -> list[str]:
    return [record.value.decode().strip('"') for record in log.read(topic, offset, max_records=100_000)]


def test_what_was_appended_is_read_in_order(log: EventLog, open_again: Open) -> None:
    offsets = log.append("t", [("käse", '{"a": "é\u2028\t"}'.encode()), ("", b"{}")]) + log.append("t", pairs("c"))
    for reader in (log, open_again()):
        records = reader.read("t", 0)
        assert [record.offset for record in records] == offsets
        assert [(record.key, record.value) for record in records[:2]] == [
            ("käse", '{"a": "é\u2028\t"}'.encode()),
            ("", b"{}"),
        ]
        assert {record.topic for record in records} == {"t"}


def test_offsets_grow_and_lead_to_the_next_record(log: EventLog) -> None:
    ends = [log.end("t")]
    for value in "abc":
        assert log.append("t", pairs(value)) == [ends[-1]]
        ends.append(log.end("t"))
    assert ends == sorted(set(ends))
    offset, seen = 0, []
    while records := log.read("t", offset, max_records=1):
        seen.append(records[0].value)
        offset = records[0].next_offset
    assert (seen, offset) == ([b'"a"', b'"b"', b'"c"'], log.end("t"))


def test_topics_are_apart_and_an_unknown_one_is_empty(log: EventLog) -> None:
    log.append("one", pairs("a"))
    log.append("two", pairs("b"))
    assert (values(log, "one"), values(log, "two"), values(log, "three")) == (["a"], ["b"], [])
    assert log.end("three") == 0
    assert log.append("one", []) == []


def test_the_latest_records_are_found_from_the_end(log: EventLog) -> None:
    assert log.latest("t", 3) == []
    log.append("t", pairs(*(str(number) * 400 for number in range(50))))
    assert [record.value[1:2] for record in log.latest("t", 3)] == [b"4", b"4", b"4"]
    assert log.latest("t", 3) == log.read("t", 0)[-3:]
    assert len(log.latest("t", 1000)) == 50
    assert log.latest("t", 0) == []


def test_a_group_goes_on_where_it_committed(log: EventLog, open_again: Open) -> None:
    log.append("t", pairs("a", "b", "c"))
    assert log.committed("readers", "t") == 0
    log.commit("readers", "t", log.read("t", 0)[1].offset)
    again = open_again()
    assert values(again, offset=again.committed("readers", "t")) == ["b", "c"]
    assert (again.committed("others", "t"), again.committed("readers", "u")) == (0, 0)


@pytest.mark.parametrize("key", ["tab\there", "line\nfeed", "half\ud800"])
def test_a_key_that_cannot_be_kept_is_refused_with_the_whole_call(log: EventLog, key: str) -> None:
    with pytest.raises(LogError, match="key"):
        log.append("t", [("good", b"{}"), (key, b"{}")])
    with pytest.raises(LogError, match="line feed"):
        log.append("t", [("good", b"{\n}")])
    assert values(log) == []


def test_threads_that_append_together_lose_and_mix_nothing(log: EventLog) -> None:
    def append(name: int) -> list[tuple[int, bytes]]:
        given = []
        for number in range(40):
            batch = [b'"%d-%d-%d"' % (name, number, part) for part in range(3)]
            given += list(zip(log.append("t", [(str(name), value) for value in batch]), batch, strict=True))
        return given

    with ThreadPoolExecutor(8) as pool:
        given = dict(pair for pairs in pool.map(append, range(8)) for pair in pairs)
    stored = {record.offset: record.value for record in log.read("t", 0, max_records=10_000)}
    assert stored == given
    assert len(stored) == 8 * 40 * 3
    # The records of one call stay together, in order.
    order = list(stored.values())
    assert all(order[at : at + 3] == [order[at][:-2] + b'%d"' % part for part in range(3)] for at in range(0, 960, 3))


def test_processes_that_append_at_once_lose_and_mix_nothing(log: EventLog, settings: Settings) -> None:
    environment = {**os.environ, "HEADRACE_DATA_DIR": str(settings.data_dir), "PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen([sys.executable, "-c", APPEND_MANY, name, "60"], env=environment) for name in ("a", "b", "c")
    ]
    followed, stop = [], threading.Event()
    for records in follow(log, "t", 0, stop=stop):  # a reader beside the writers sees each record once, whole
        followed += records
        if len(followed) >= 3 * 60 * 3:
            stop.set()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert followed == log.read("t", 0, max_records=10_000)
    for name in ("a", "b", "c"):
        own = [record.value for record in followed if record.key == name]
        assert own == [b'{"n": %d, "part": %d}' % (number, part) for number in range(60) for part in range(3)]


def test_following_waits_at_the_end_until_it_is_stopped(log: EventLog) -> None:
    log.append("t", pairs("a"))
    stop, seen = threading.Event(), []

    def read() -> None:
        for records in follow(log, "t", 0, stop=stop, poll_seconds=0.001):
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
