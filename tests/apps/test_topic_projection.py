"""A projection of a topic: every event once and in order, whatever is unreadable or fails on the way."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import BaseModel

from apps.topic_projection import Entry, TopicProjection
from infra import topics
from infra.log.client import START, LogUnreachableError, Record
from infra.log.files import FileLog


class Number(BaseModel):
    value: int


class Numbers:
    """A projection that keeps the numbers of a topic in their order."""

    def __init__(self, log: FileLog) -> None:
        self.values: list[int] = []
        self.entries: list[Entry[Number]] = []
        self.topic = TopicProjection(log, topics.RULES, parse=Number.model_validate_json, apply=self._apply)

    def _apply(self, entries: Sequence[Entry[Number]]) -> None:
        self.entries += entries
        self.values += [entry.event.value for entry in entries]


@pytest.fixture
def log(tmp_path: Path) -> FileLog:
    return FileLog(tmp_path)


def append(log: FileLog, *values: int) -> None:
    log.append(topics.RULES, [("key", b'{"value": %d}' % value) for value in values])


def test_each_event_is_applied_once_from_the_beginning_of_the_topic(log: FileLog) -> None:
    append(log, *range(2_500))
    numbers = Numbers(log)
    numbers.topic.catch_up()
    append(log, 2_500)
    numbers.topic.catch_up()
    numbers.topic.catch_up()
    assert numbers.values == list(range(2_501))
    assert numbers.topic.position == log.end(topics.RULES)


def test_what_is_appended_is_applied_on_return_with_what_others_appended_before(log: FileLog) -> None:
    numbers = Numbers(log)
    append(log, 1)
    numbers.topic.append("key", b'{"value": 2}')
    assert numbers.values == [1, 2]


def test_an_unreadable_record_is_skipped_and_named_without_its_content(
    log: FileLog, caplog: pytest.LogCaptureFixture
) -> None:
    append(log, 1)
    log.append(topics.RULES, [("key", b'{"value": "secret"}')])
    append(log, 3)
    numbers = Numbers(log)
    numbers.topic.catch_up()
    assert numbers.values == [1, 3]
    assert "unreadable rules record, rules:0:" in caplog.text
    assert "value: " in caplog.text
    assert "secret" not in caplog.text


def test_a_reader_resumes_behind_any_entry(log: FileLog) -> None:
    append(log, 1, 2, 3)
    numbers = Numbers(log)
    numbers.topic.catch_up()
    entries, position = numbers.topic.read(numbers.entries[0].resume)
    assert [entry.event.value for entry in entries] == [2, 3]
    assert position == numbers.topic.end()
    assert numbers.topic.read(position) == ([], position)
    assert numbers.topic.read(START)[0] == numbers.entries
    assert numbers.values == [1, 2, 3]


def test_an_error_of_the_log_leaves_the_state_and_the_next_call_continues(
    log: FileLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log, 1)
    numbers = Numbers(log)
    numbers.topic.catch_up()
    append(log, 2)

    def refuse(*_: object) -> list[Record]:
        raise LogUnreachableError("the log is away")

    with monkeypatch.context() as patch:
        patch.setattr(log, "read", refuse)
        with pytest.raises(LogUnreachableError):
            numbers.topic.catch_up()
    assert numbers.values == [1]
    numbers.topic.catch_up()
    assert numbers.values == [1, 2]
