"""The log scorer: every payment is decided, bad records are set aside, and it resumes where it committed."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from apps.fraud import scorer
from apps.fraud.decisions import DecisionStore
from apps.fraud.service import FraudService
from features.contract.events import Decision, Transaction, key_of, to_json
from infra import topics
from infra.log.client import START, LogError, LogFullError, LogUnreachableError
from infra.log.files import FileLog


@pytest.fixture
def scored(log: FileLog, service: FraudService, decisions: DecisionStore) -> Callable[[], list[Decision]]:
    """Runs the scorer until it has committed everything in the log; returns all decisions."""

    def run(**more: Any) -> list[Decision]:
        stop = threading.Event()
        worker = threading.Thread(
            target=scorer.run, args=(log,), kwargs={"service": service, "decisions": decisions, "stop": stop, **more}
        )
        worker.start()
        end, until = log.end(topics.TRANSACTIONS), time.monotonic() + 20
        while not log.committed(scorer.GROUP, topics.TRANSACTIONS).covers(end) and time.monotonic() < until:
            time.sleep(0.01)
        stop.set()
        worker.join()
        return [Decision.model_validate_json(record.value) for record in log.read(topics.DECISIONS, START)]

    return run


def put(log: FileLog, *payments: Transaction) -> None:
    log.append(topics.TRANSACTIONS, [(key_of(payment), to_json(payment)) for payment in payments])


def test_payments_of_the_log_get_decisions_under_their_card(log: FileLog, scored: Any, new_payment: Any) -> None:
    put(log, *(new_payment(number, seconds=number) for number in range(9)))
    decisions = scored()
    assert [decision.event_id for decision in decisions] == [f"tx_{number}" for number in range(9)]
    assert decisions[-1].outcome == "decline"
    assert {record.key for record in log.read(topics.DECISIONS, START)} == {"card_1"}


def test_payments_that_the_api_scored_are_not_scored_again_but_count(
    log: FileLog, scored: Any, new_payment: Any
) -> None:
    put(log, *(new_payment(number, seconds=number, scored=True) for number in range(8)), new_payment(8, seconds=8))
    (decision,) = scored()
    assert decision.event_id == "tx_8"
    assert decision.outcome == "decline"


def test_payments_of_the_past_count_and_are_not_decided(log: FileLog, scored: Any, new_payment: Any) -> None:
    since = (datetime.now(UTC) - new_payment(0).event_time).total_seconds()
    days = 86_400.0
    old = [new_payment(number, seconds=since - 3 * days - number * 600, amount=9_999) for number in range(8)]
    put(log, *old, new_payment(8, seconds=since - 3 * days + 3_600))
    (decision,) = scored(history_after=timedelta(days=3))
    assert decision.event_id == "tx_8"
    assert decision.outcome == "decline", "the burst of the eight before it"


def test_a_payment_that_waited_long_for_the_scorer_is_decided(
    tmp_path: Path, log: FileLog, scored: Any, new_payment: Any
) -> None:
    then = new_payment(1).event_time.timestamp()
    put(FileLog(tmp_path / "log", clock=lambda: then + 60), new_payment(1))
    assert len(scored(history_after=timedelta(seconds=61))) == 1


def test_a_decision_names_the_call_that_brought_the_payment(log: FileLog, scored: Any, new_payment: Any) -> None:
    put(log, new_payment(1, http_request_id="call-1"), new_payment(2))
    assert [decision.http_request_id for decision in scored()] == ["call-1", None]


def test_a_log_that_cannot_be_read_for_a_while_delays_decisions(
    log: FileLog, scored: Any, new_payment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(log, new_payment(1))
    read, failures = log.read, [None] * 3

    def away_at_first(topic: str, offset: int, **more: Any) -> Any:
        if topic == topics.TRANSACTIONS and failures:
            failures.pop()
            raise LogError("the log is away")
        return read(topic, offset, **more)

    monkeypatch.setattr(scorer, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(log, "read", away_at_first)
    assert len(scored()) == 1
    assert failures == []


def test_it_goes_on_where_it_committed(log: FileLog, scored: Any, new_payment: Any) -> None:
    put(log, new_payment(1))
    assert len(scored()) == 1
    put(log, new_payment(2))
    assert [decision.event_id for decision in scored()] == ["tx_1", "tx_2"]


def test_a_crash_before_the_commit_leaves_the_first_decisions_in_force(
    log: FileLog, scored: Any, new_payment: Any, tmp_path: Path
) -> None:
    put(log, new_payment(1), new_payment(2))
    before = scored()
    (tmp_path / "log" / topics.TRANSACTIONS / "offsets" / f"{scorer.GROUP}.json").unlink()
    assert scored() == before


def test_a_payment_that_is_in_the_log_twice_is_decided_once(log: FileLog, scored: Any, new_payment: Any) -> None:
    put(log, new_payment(1), new_payment(1))
    assert len(scored()) == 1


@pytest.mark.parametrize(
    "value",
    [
        b"not json", b"{}", b'{"type":"transaction","event_id":"x"}', b"[]", b"null", b"3", b"\xff\xfe", b"[" * 3000,
        b'{"type":"label","event_id":"x"}', b'{"amount":"\xc3("}', b'{"card_id":"%s"}' % (b"x" * 10**6),
    ],
    ids=range(11),
)  # fmt: skip
def test_a_malformed_record_is_set_aside_and_blocks_nothing(
    log: FileLog, scored: Any, new_payment: Any, value: bytes
) -> None:
    offset = log.end_offset(topics.TRANSACTIONS)
    log.append(topics.TRANSACTIONS, [("k", value)])
    put(log, new_payment(1))
    assert [decision.event_id for decision in scored()] == ["tx_1"]
    (letter,) = [orjson.loads(record.value) for record in log.read(topics.DEAD_LETTERS, START)]
    assert letter["reason"] == "malformed"
    assert letter["origin"] == {"topic": topics.TRANSACTIONS, "partition": 0, "offset": offset}
    assert letter["value"] == value.decode(errors="replace")


def test_a_payment_that_cannot_be_scored_does_not_take_its_batch_with_it(
    log: FileLog, scored: Any, new_payment: Any, service: FraudService, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_many = service.score_many

    def choking(payments: list[Transaction], **more: Any) -> list[Decision]:
        if any(payment.event_id == "tx_2" for payment in payments):
            raise ValueError("cannot")
        return score_many(payments, **more)

    monkeypatch.setattr(service, "score_many", choking)
    put(log, *(new_payment(number) for number in (1, 2, 3)))
    assert [decision.event_id for decision in scored()] == ["tx_1", "tx_3"]
    (letter,) = [orjson.loads(record.value) for record in log.read(topics.DEAD_LETTERS, START)]
    assert letter["reason"] == "unscorable"


@pytest.mark.parametrize("error", [LogFullError("no room"), LogUnreachableError("cannot reach it")], ids=str)
def test_a_log_that_takes_nothing_for_a_while_delays_decisions_and_loses_none(
    log: FileLog, scored: Any, new_payment: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    append, failures = log.append, [None, None]

    def full_at_first(topic: str, records: Any) -> None:
        if topic == topics.DECISIONS and failures:
            failures.pop()
            raise error
        append(topic, records)

    monkeypatch.setattr(scorer, "RETRY_SECONDS", 0.01)
    put(log, new_payment(1))
    monkeypatch.setattr(log, "append", full_at_first)
    assert len(scored()) == 1
    assert failures == []


def test_imported_history_can_be_skipped(log: FileLog, scored: Any, new_payment: Any) -> None:
    put(log, new_payment(1))
    scorer.skip_history(log)
    put(log, new_payment(2))
    assert [decision.event_id for decision in scored()] == ["tx_2"]
