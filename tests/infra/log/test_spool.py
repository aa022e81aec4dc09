"""The spool: whatever the log does, no append fails or waits long, and every record reaches the log, in order."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from infra.log import spool
from infra.log.client import START, LogError, LogFullError
from infra.log.files import FileLog, encode_line
from infra.log.spool import Spool, SpooledLog

ROOT = Path(__file__).parents[3]
OUTAGE = """
import sys
from pathlib import Path
from infra.log.client import LogError
from infra.log.spool import Spool, SpooledLog
class Dead:
    def append(self, topic, records):
        raise LogError("away")
spooled = SpooledLog(Dead(), "t", Spool(Path(sys.argv[1]), max_bytes=10_000_000))
number = int(sys.argv[2])
while True:
    spooled.append("key", b'{"n": %d}' % number)
    print(number, flush=True)
    number += 1
"""


class Flaky:
    """A log that fails or hangs on demand; with `late` it fails after it has stored the records."""

    def __init__(self, folder: Path) -> None:
        self.real = FileLog(folder)
        self.down = False
        self.late = False
        self.hold = threading.Event()
        self.hold.set()
        self.calls = 0
        self.chance = 0.0
        self._rng = random.Random(3)

    def append(self, topic: str, records: Sequence[tuple[str, bytes]]) -> None:
        self.calls += 1
        self.hold.wait(10)
        fails = self.down or self._rng.random() < self.chance
        if fails and not self.late:
            raise LogFullError("no room")
        self.real.append(topic, records)
        if fails:
            raise LogError("it is unknown whether it was stored")

    def numbers(self) -> list[int]:
        return [json.loads(record.value)["n"] for record in self.real.read("t", START, max_records=1_000_000)]


class Lost:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(spool, "LONGEST_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(spool, "ADOPT_SECONDS", 0.1)
    monkeypatch.setattr(spool, "DELIVER_SECONDS", 0.02)
    monkeypatch.setattr(spool, "HANGING_SECONDS", 0.1)


@pytest.fixture
def log(tmp_path: Path) -> Flaky:
    return Flaky(tmp_path / "log")


@pytest.fixture
def lost() -> Lost:
    return Lost()


@pytest.fixture
def spooled(tmp_path: Path, log: Flaky, lost: Lost) -> Iterator[SpooledLog]:
    opened = open_spooled(tmp_path, log, lost)
    yield opened
    log.hold.set()
    opened.stop()


def open_spooled(folder: Path, log: Flaky, lost: Lost, *, max_bytes: int = 1_000_000) -> SpooledLog:
    waiting = Spool(folder / "spool", max_bytes=max_bytes)
    return SpooledLog(log, "t", waiting, on_lost=lost)  # type: ignore[arg-type]


def value(number: int) -> bytes:
    return b'{"n": %d}' % number


def wait_for(count: int, log: Flaky) -> list[int]:
    end = time.monotonic() + 20
    while len(set(log.numbers())) < count and time.monotonic() < end:
        time.sleep(0.05)
    return log.numbers()


def firsts(numbers: list[int]) -> list[int]:
    """Returns what a reader sees that counts each record once."""
    return list(dict.fromkeys(numbers))


def gone(folder: Path) -> bool:
    """Returns whether the spool is empty within 5 s."""
    end = time.monotonic() + 5
    while (left := list(folder.glob("spool/*"))) and time.monotonic() < end:
        time.sleep(0.01)
    return not left


def append_until(spooled: SpooledLog, *, answers: bool, first: int) -> int:
    """Appends until `append` returns `answers`; returns the number after the last one appended."""
    end = time.monotonic() + 5
    while spooled.append("key", value(first)) != answers:
        assert time.monotonic() < end
        time.sleep(0.01)
        first += 1
    return first + 1


def test_while_the_log_works_records_reach_it_at_once(spooled: SpooledLog, log: Flaky, tmp_path: Path) -> None:
    for number in range(5):
        assert spooled.append("key", value(number))
    assert wait_for(5, log) == list(range(5))
    assert gone(tmp_path)


def test_records_that_come_together_share_an_append(spooled: SpooledLog, log: Flaky) -> None:
    for number in range(200):
        spooled.append("key", value(number))
    assert wait_for(200, log) == list(range(200))
    assert log.calls < 100


def test_a_record_outlives_its_process_and_waits_for_no_log(tmp_path: Path, log: Flaky, lost: Lost) -> None:
    spooled = open_spooled(tmp_path, log, lost)
    log.hold.clear()
    spooled.append("key", value(0))
    (kept,) = tmp_path.glob("spool/*.spool")
    assert kept.read_bytes().endswith(value(0) + b"\n")
    log.hold.set()
    spooled.stop()
    assert firsts(log.numbers()) == [0]


def test_what_a_log_refused_reaches_it_in_order_when_it_is_back(
    spooled: SpooledLog, log: Flaky, lost: Lost, tmp_path: Path
) -> None:
    log.down = True
    number = append_until(spooled, answers=False, first=0)
    assert not any(spooled.append("key", value(later)) for later in range(number, number + 50))
    assert log.numbers() == []
    log.down = False
    assert wait_for(number + 50, log) == list(range(number + 50))
    number = append_until(spooled, answers=True, first=number + 50)
    assert firsts(wait_for(number, log)) == list(range(number))
    assert lost.count == 0
    assert gone(tmp_path)


def test_an_append_whose_answer_was_lost_counts_once(spooled: SpooledLog, log: Flaky, tmp_path: Path) -> None:
    log.down = log.late = True
    for number in range(10):
        spooled.append("key", value(number))
    while not log.calls:
        time.sleep(0.01)
    log.down = False
    assert gone(tmp_path)
    numbers = log.numbers()
    assert firsts(numbers) == list(range(10))
    assert numbers.count(0) >= 2


def test_a_log_that_hangs_is_reported_and_costs_no_caller_any_time(spooled: SpooledLog, log: Flaky) -> None:
    log.hold.clear()
    number = append_until(spooled, answers=False, first=0)
    took = []
    for later in range(number, number + 20):
        started = time.monotonic()
        assert not spooled.append("key", value(later))
        took.append(time.monotonic() - started)
    assert sorted(took)[10] < 0.01
    log.hold.set()
    assert firsts(wait_for(number + 20, log)) == list(range(number + 20))


def test_a_dead_log_is_tried_now_and_then_and_not_for_every_record(spooled: SpooledLog, log: Flaky) -> None:
    log.down = True
    started = time.monotonic()
    for number in range(300):
        spooled.append("key", value(number))
    assert log.calls <= 3 + (time.monotonic() - started) / 0.05


def test_a_full_spool_loses_and_counts_and_does_not_raise(tmp_path: Path, log: Flaky, lost: Lost) -> None:
    line = len(encode_line(1_790_000_000_000, "key", value(10)))
    spooled = open_spooled(tmp_path, log, lost, max_bytes=5 * line)
    log.down = True
    for number in range(10, 30):
        spooled.append("key", value(number))
    assert lost.count == 15
    assert sum(path.stat().st_size for path in tmp_path.glob("spool/*")) <= 5 * line
    log.down = False
    assert wait_for(5, log) == [10, 11, 12, 13, 14]
    spooled.stop()


def test_a_record_that_no_log_can_hold_is_lost_alone(spooled: SpooledLog, log: Flaky, lost: Lost) -> None:
    assert not spooled.append("a\tb", value(0))
    assert spooled.append("key", value(1))
    assert (lost.count, wait_for(1, log)) == (1, [1])


@settings(max_examples=12, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(st.sampled_from(["append", "down", "up", "late", "restart"]), min_size=5, max_size=40))
def test_whatever_happens_every_record_is_there_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, plan: list[str]
) -> None:
    folder, lost = tmp_path_factory.mktemp("spool"), Lost()
    log = Flaky(folder / "log")
    spooled, number = open_spooled(folder, log, lost), 0
    for step in plan:
        if step == "append":
            spooled.append("key", value(number))
            number += 1
        elif step == "restart":
            spooled.stop()
            spooled = open_spooled(folder, log, lost)
        else:
            log.down, log.late = step != "up", step == "late"
    log.down = False
    spooled.append("key", value(number))
    numbers = wait_for(number + 1, log)
    spooled.stop()
    assert sorted(firsts(numbers)) == list(range(number + 1))
    if "restart" not in plan:
        assert firsts(numbers) == list(range(number + 1))
    assert lost.count == 0


def test_a_log_that_fails_at_random_under_many_threads_gets_everything(
    spooled: SpooledLog, log: Flaky, lost: Lost
) -> None:
    log.chance = 0.3

    def work(first: int) -> None:
        for number in range(first, first + 50):
            spooled.append(f"key-{first}", value(number))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 400, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = firsts(wait_for(400, log))
    assert sorted(numbers) == list(range(400))
    for first in range(0, 400, 50):
        assert [number for number in numbers if first <= number < first + 50] == list(range(first, first + 50))
    assert lost.count == 0


def test_what_killed_processes_had_spooled_is_delivered_by_another(tmp_path: Path, log: Flaky, lost: Lost) -> None:
    wait, present, printed = random.Random(5), 0, 0
    for _ in range(4):
        command = [sys.executable, "-c", OUTAGE, str(tmp_path / "spool"), str(present)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(wait.uniform(0, 0.05))
            writer.kill()
            printed = int((f"{present}\n" + writer.stdout.read()).split("\n")[-2])
        present = printed + 1000  # far apart, so that no number occurs twice
        with sorted(tmp_path.glob("spool/*.spool"))[-1].open("ab") as torn:
            torn.write(encode_line(1, "key", value(999_999))[:-3])
    spooled = open_spooled(tmp_path, log, lost)
    spooled.append("key", value(1_000_000))
    end = time.monotonic() + 10
    while list(tmp_path.glob("spool/*.spool")) and time.monotonic() < end:
        time.sleep(0.05)
    spooled.stop()
    numbers = firsts(log.numbers())
    assert 999_999 not in numbers
    assert {0, printed, 1_000_000} <= set(numbers)
    spooled_before = [number for number in numbers if number < 1_000_000]
    assert spooled_before == sorted(spooled_before)


def test_a_living_process_keeps_its_files_to_itself(tmp_path: Path, log: Flaky, lost: Lost) -> None:
    own, other = Spool(tmp_path / "spool", max_bytes=1000), Spool(tmp_path / "spool", max_bytes=1000)
    assert own.append(encode_line(1, "key", value(1)))
    assert other.adopt() == 0
    assert [pair[1] for pair in own.oldest(10)] == [value(1)]
    own.mark_delivered(1)
    assert (own.records, own.size, list(tmp_path.glob("spool/*"))) == (0, 0, [])
