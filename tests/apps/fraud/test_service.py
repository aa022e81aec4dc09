"""Scoring always answers: with a model and reasons, idempotently, and flagged as degraded without store or model."""

from collections.abc import Callable
from typing import Any

import pytest

from apps.fraud.judgement import RULES
from apps.fraud.recent_payments import RecentPayments
from apps.fraud.service import FraudService
from features.contract import columns
from features.contract.events import LOGGED, Transaction
from features.contract.timestamps import milliseconds
from features.history.arrays import hash_ids
from infra import topics
from infra.log.client import START, LogFullError
from infra.log.files import FileLog

NewPayment = Callable[..., Transaction]
NewProcess = Callable[..., FraudService]


def stored(payments: list[Transaction], partner: str) -> dict[str, Any]:
    return {
        columns.TIMES: [milliseconds(payment.event_time) for payment in payments],
        columns.AMOUNTS: [payment.amount for payment in payments],
        columns.COUNTERPARTIES: [getattr(payment, partner) for payment in payments],
        columns.EVENT_HASHES: hash_ids([payment.event_id for payment in payments]).tolist(),
    }


def test_an_ordinary_payment_is_approved_without_reasons(service: FraudService, new_payment: NewPayment) -> None:
    decision = service.score(new_payment(1))
    assert (decision.outcome, decision.reasons, decision.degraded) == ("approve", (), False)
    assert decision.model == "model-1"


def test_a_burst_is_seen_before_the_store_knows_of_it(service: FraudService, new_payment: NewPayment) -> None:
    outcomes = [service.score(new_payment(number, seconds=number)).outcome for number in range(9)]
    assert outcomes[0] == "approve"
    assert outcomes[-1] == "decline"
    assert "review" in outcomes


def test_reasons_say_in_words_what_was_seen_and_what_is_usual(service: FraudService, new_payment: NewPayment) -> None:
    decisions = [service.score(new_payment(number, seconds=number * 3_600)) for number in range(7)]
    (burst, *rest) = decisions[-1].reasons
    assert (burst.code, burst.text) == ("CARD_BURST", "payments in 24 hours: 7, usually 1")
    assert burst.weight == pytest.approx(6.0, abs=0.01)
    assert all(reason.weight <= burst.weight for reason in rest)


def test_payments_scored_together_see_each_other_as_those_scored_alone_do(
    service: FraudService, new_process: NewProcess, new_payment: NewPayment
) -> None:
    payments = [new_payment(number, seconds=number, card=f"card_{number % 2}") for number in range(8)]
    alone = [service.score(payment).score for payment in payments]
    together = [decision.score for decision in new_process().score_many(payments)]
    assert together == pytest.approx(alone)


def test_a_late_payment_is_not_seen_by_those_that_came_before_it_also_when_all_are_scored_again(
    service: FraudService, new_payment: NewPayment
) -> None:
    payments = [new_payment(1, seconds=100), new_payment(2, seconds=50), new_payment(3, seconds=100)]
    first, late, last = (decision.score for decision in service.score_many(payments))
    assert (first, first < last) == (late, True)
    again = [*service.score_many(payments), *(service.score_many([payment])[0] for payment in payments)]
    assert [decision.score for decision in again] == [first, late, last] * 2


def test_a_payment_that_is_stored_and_recent_counts_once(
    service: FraudService, reader: Any, model: Any, new_payment: NewPayment
) -> None:
    payments = [new_payment(number, seconds=number) for number in range(4)]
    service.score_many(payments)
    reader.cards["card_1"] = stored(payments[:3], "terminal_id")
    reader.terminals["term_1"] = stored(payments[1:], "card_id")
    decision = service.score(new_payment(9, seconds=9))
    assert decision.score == pytest.approx(1 / (1 + 2.718281828 ** (6 - 5 - 0.1)))


def test_a_repeated_transaction_gets_its_first_decision_and_is_recorded_once(
    service: FraudService, log: FileLog, new_payment: NewPayment
) -> None:
    first = service.score(new_payment(1))
    assert service.score(new_payment(1, amount=9_999)) == first
    assert len(log.read(topics.DECISIONS, START)) == 1
    (record,) = log.read(topics.TRANSACTIONS, START)
    event = LOGGED.validate_json(record.value)
    assert isinstance(event, Transaction)
    assert event.scored
    assert record.key == "card_1"


def test_a_decision_made_by_another_process_meanwhile_holds(
    service: FraudService, new_process: NewProcess, new_payment: NewPayment
) -> None:
    first = new_process().score(new_payment(1, amount=2_000))
    assert first.outcome == "decline"
    assert service.score(new_payment(1)) == first


def test_a_repeat_after_a_crash_between_the_two_records_writes_the_missing_payment(
    service: FraudService, log: FileLog, new_payment: NewPayment, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = log.append

    def failing(topic: str, records: Any) -> list[int]:
        if topic == topics.TRANSACTIONS:
            raise LogFullError("no room")
        return append(topic, records)

    monkeypatch.setattr(log, "append", failing)
    with pytest.raises(LogFullError):
        service.score(new_payment(1))
    monkeypatch.setattr(log, "append", append)
    service.score(new_payment(1))
    assert (len(log.read(topics.DECISIONS, START)), len(log.read(topics.TRANSACTIONS, START))) == (1, 1)


def test_without_the_store_it_answers_from_recent_payments_and_says_so(
    service: FraudService, reader: Any, new_payment: NewPayment
) -> None:
    reader.broken = True
    decisions = [service.score(new_payment(number, seconds=number)) for number in range(9)]
    assert all(decision.degraded for decision in decisions)
    assert decisions[-1].outcome == "decline"


@pytest.mark.parametrize("fault", ["no model", "broken model", "other features"])
def test_without_a_model_two_plain_rules_stand_in(
    new_process: NewProcess, model: Any, new_payment: NewPayment, fault: str
) -> None:
    model.broken = fault == "broken model"
    if fault == "other features":
        model.card = model.card.model_copy(update={"features": ("amount",)})
    service = new_process(lambda: None if fault == "no model" else model)
    decisions = [service.score(new_payment(number, seconds=number)) for number in range(5)]
    assert [decision.outcome for decision in decisions] == ["approve"] * 4 + ["review"]
    assert decisions[-1].reasons[0].text.startswith("payments in 1 hour: 5")
    large = service.score(new_payment(9, seconds=9, amount=5_000))
    assert {reason.code for reason in large.reasons} == {"AMOUNT_UNUSUAL", "CARD_BURST"}
    assert all(decision.degraded and decision.model == RULES for decision in [*decisions, large])


def test_recent_payments_are_forgotten_after_their_time_and_beyond_their_number(new_payment: NewPayment) -> None:
    now = [0.0]
    recent = RecentPayments(clock=lambda: now[0], seconds=60, most=3)

    def observe(number: int, **more: Any) -> None:
        recent.observe_arrived([new_payment(number, **more)], [number], cards=[], terminals=[])

    def kept() -> int:
        observe(99, card="elsewhere")  # old entries are dropped on each arrival
        return len(recent.observe_arrived([], [], cards=["card_1"], terminals=[])[0].key)

    for number in range(5):
        observe(number, seconds=number)
    assert kept() == 2
    now[0] = 61
    assert kept() == 0


def test_payments_decided_by_another_process_count_unless_that_was_long_ago(
    service: FraudService, recent: RecentPayments, new_process: NewProcess, new_payment: NewPayment
) -> None:
    elsewhere = new_process().score_many([new_payment(number, seconds=number) for number in range(8)])
    recent.observe_decided(elsewhere)  # decided at 0, long before the clock of `service`
    assert service.score(new_payment(8, seconds=8)).outcome == "approve"
    now = new_payment(9).event_time
    recent.observe_decided([decision.model_copy(update={"decided_time": now}) for decision in elsewhere])
    assert service.score(new_payment(9, seconds=9)).outcome == "decline"
