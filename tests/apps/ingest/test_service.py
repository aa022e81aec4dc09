"""Accepting events: what is refused and in which words, what counts once, and what is stored."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier
from typing import Any

import orjson
import pytest

from apps.ingest.service import IngestResponse, IngestService
from features.contract.events import LOGGED
from infra import topics
from infra.log.client import START, LogFullError
from infra.log.files import FileLog

Make = Callable[..., dict[str, Any]]


def stored(log: FileLog, topic: str = topics.SHOP) -> list[str]:
    return [orjson.loads(record.value)["event_id"] for record in log.read(topic, START)]


def counts(response: IngestResponse) -> tuple[int, int, int]:
    return response.accepted, response.duplicates, response.refused


def without(event: dict[str, Any], name: str) -> dict[str, Any]:
    return {field: value for field, value in event.items() if field != name}


WRONG = {
    "an unknown type": ({"type": "refund"}, "type", "does not match any of the expected tags"),
    "a type that is no text": ({"type": ["purchase"]}, "type", "does not match"),
    "an empty id": ({"event_id": ""}, "event_id", "at least 1 character"),
    "a long id": ({"event_id": "x" * 129}, "event_id", "at most 128 characters"),
    "a number as id": ({"event_id": 5}, "event_id", "valid string"),
    "a control character in an id": ({"item_id": "a\x00b"}, "item_id", "holds a control character"),
    "a line feed in the key": ({"user_id": "u\n"}, "user_id", "holds a control character"),
    "a tab in the key": ({"user_id": "\tu"}, "user_id", "holds a control character"),
    "both ids missing": ({"user_id": None}, "user_id", "give user_id or session_id"),
    "a naive time": ({"event_time": "2026-11-22T10:15:00"}, "event_time", "should have timezone info"),
    "no time at all": ({"event_time": "yesterday"}, "event_time", "valid datetime"),
    "a time beyond the calendar": ({"event_time": 1e300}, "event_time", "dates after 9999"),
    "the future": ({"event_time": "2026-11-22T12:05:01Z"}, "event_time", "more than 300 s in the future"),
    "the far future": ({"event_time": "9999-12-31T23:59:59-23:59"}, "event_time", "in the future"),
    "very old": ({"event_time": "2025-10-18T11:59:59Z"}, "event_time", "older than 400 days; append history with"),
    "the first day of the calendar": ({"event_time": "0001-01-01T00:00:00+23:59"}, "event_time", "older than"),
    "not a number": ({"price": float("nan")}, "price", "finite number"),
    "infinite": ({"quantity": float("inf")}, "quantity", "finite number"),
    "a huge number": ({"quantity": 1e30}, "quantity", "less than or equal to 1000000"),
    "a negative price": ({"price": -0.01}, "price", "greater than or equal to 0"),
    "nothing bought": ({"quantity": 0}, "quantity", "greater than 0"),
    "an extra field": ({"colour": "red"}, "colour", "Extra inputs are not permitted"),
    "an extra field named like a type": ({"item": 1}, "item", "Extra inputs are not permitted"),
    "another schema version": ({"schema_version": 2}, "schema_version", "Input should be 1"),
    "too large": ({"order_id": "x" * 2000}, "", "larger than 2000 bytes"),
    "a mark that is ours": ({"scored": True}, "scored", "only Headrace sets this"),
}


@pytest.mark.parametrize(("change", "field", "reason"), WRONG.values(), ids=WRONG)
def test_a_bad_event_is_refused_with_field_and_reason_and_the_rest_is_taken(
    service: IngestService, log: FileLog, purchase: Make, change: dict[str, Any], field: str, reason: str
) -> None:
    response = service.accept([purchase("a"), purchase("bad") | change, purchase("b")])
    assert counts(response) == (2, 0, 1)
    assert [result.status for result in response.results] == ["accepted", "refused", "accepted"]
    bad = response.results[1]
    assert (bad.index, bad.field) == (1, field)
    assert reason in str(bad.reason)
    assert stored(log) == ["a", "b"]


@pytest.mark.parametrize("name", ["type", "event_id", "event_time", "item_id"])
def test_a_missing_field_is_named(service: IngestService, purchase: Make, name: str) -> None:
    (result,) = service.accept([without(purchase(), name)]).results
    assert (result.status, result.field) == ("refused", name)


@pytest.mark.parametrize("raw", [None, 5, "event", [], [{"type": "view"}], True])
def test_what_is_no_object_is_refused(service: IngestService, raw: object) -> None:
    (result,) = service.accept([raw]).results
    assert (result.status, result.reason, result.event_id) == ("refused", "an event is a JSON object", None)


def test_an_event_nested_too_deep_is_refused_alone(service: IngestService, purchase: Make) -> None:
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    response = service.accept([purchase("bad", title=deep), purchase("a")])
    assert [(result.status, result.reason) for result in response.results] == [
        ("refused", "nested too deep"),
        ("accepted", None),
    ]


def test_the_limits_of_time_themselves_are_taken_in_any_order(service: IngestService, purchase: Make) -> None:
    times = ["2026-11-22T12:05:00Z", "2025-10-18T12:00:00Z", "2026-11-22T13:15:00+02:00", 1_795_000_000]
    batch = [purchase(f"p-{number}", event_time=time) for number, time in enumerate(times)]
    assert counts(service.accept(batch)) == (4, 0, 0)


def test_a_long_limit_is_named_in_full(service_on: Callable[..., IngestService], log: FileLog, purchase: Make) -> None:
    service = service_on(log, max_future_seconds=90_000)
    (result,) = service.accept([purchase(event_time="2026-11-24T12:00:00Z")]).results
    assert result.reason == "lies more than 90000 s in the future; check the clock"


def test_events_go_to_their_topic_whole_under_their_key(
    service: IngestService, log: FileLog, purchase: Make, payment: Make
) -> None:
    view = {"type": "view", "event_id": "v", "event_time": "2026-11-22T10:15:00Z", "session_id": "s", "item_id": "i"}
    item = {"type": "item", "event_id": "i", "event_time": "2026-11-22T10:15:00Z", "item_id": "käse", "title": "Ä\n\t"}
    assert counts(service.accept([purchase(), payment(), view, item])) == (4, 0, 0)
    shop = log.read(topics.SHOP, START)
    assert [record.key for record in shop] == ["u", "s", "käse"]
    assert [record.key for record in log.read(topics.TRANSACTIONS, START)] == ["c"]
    bought, listed = LOGGED.validate_json(shop[0].value), orjson.loads(shop[2].value)
    assert bought.event_time == datetime(2026, 11, 22, 10, 15, tzinfo=UTC)
    assert listed["title"] == "Ä\n\t"
    assert "session_id" not in orjson.loads(shop[0].value)


def test_an_event_counts_once_in_a_batch_and_across_batches(
    service: IngestService, log: FileLog, purchase: Make, payment: Make
) -> None:
    first = service.accept([purchase("a"), purchase("a", item_id="other"), purchase("b")])
    assert [result.status for result in first.results] == ["accepted", "duplicate", "accepted"]
    assert counts(service.accept([purchase("b"), purchase("c"), payment("c")])) == (1, 2, 0)
    assert stored(log) == ["a", "b", "c"]
    assert stored(log, topics.TRANSACTIONS) == []


def test_a_refused_event_may_come_again_corrected(service: IngestService, purchase: Make) -> None:
    assert counts(service.accept([purchase("a", price=-1), purchase("a")])) == (1, 0, 1)
    assert counts(service.accept([purchase("b", price=-1)])) == (0, 0, 1)
    assert counts(service.accept([purchase("b")])) == (1, 0, 0)


def test_the_memory_of_ids_is_bounded(service_on: Callable[..., IngestService], log: FileLog, purchase: Make) -> None:
    service = service_on(log, recent=2)
    for event_id in "abc":
        service.accept([purchase(event_id)])
    assert counts(service.accept([purchase("c"), purchase("b")])) == (0, 2, 0)
    assert counts(service.accept([purchase("a")])) == (1, 0, 0)


def test_of_calls_at_the_same_moment_none_loses_the_event_and_later_ones_are_duplicates(
    service: IngestService, log: FileLog, purchase: Make
) -> None:
    callers = 8
    together = Barrier(callers)

    def send(_: int) -> IngestResponse:
        together.wait(10)
        return service.accept([purchase("same")])

    with ThreadPoolExecutor(callers) as pool:
        responses = list(pool.map(send, range(callers)))
    accepted = sum(response.accepted for response in responses)
    assert accepted + sum(response.duplicates for response in responses) == callers
    assert 1 <= accepted == len(stored(log))  # each acknowledged one is in the log; readers count it once
    assert counts(service.accept([purchase("same")])) == (0, 1, 0)


class HalfFullLog(FileLog):
    """Has no room for transactions until `full` is unset."""

    full = True

    def append(self, topic: str, records: Any) -> list[int]:
        if self.full and topic == topics.TRANSACTIONS:
            raise LogFullError("no room")
        return super().append(topic, records)


def test_a_batch_that_found_no_room_can_be_sent_again_and_counts_once(
    service_on: Callable[..., IngestService], log: FileLog, purchase: Make, payment: Make
) -> None:
    half_full = HalfFullLog(log._folder)
    service = service_on(half_full)
    batch = [purchase("a"), payment("t")]
    for _ in range(2):
        with pytest.raises(LogFullError):
            service.accept(batch)
    half_full.full = False
    assert counts(service.accept(batch)) == (1, 1, 0)
    assert (stored(log), stored(log, topics.TRANSACTIONS)) == (["a"], ["t"])
