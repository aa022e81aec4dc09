"""Decisions: the first decision wins, alerts pass their filters, and a stream resumes with nothing lost."""

from datetime import timedelta
from typing import Any

import pytest

from apps.fraud.decisions import DecisionStore
from features.contract.events import Decision, key_of, to_json
from infra import topics
from infra.log.client import START, Position
from infra.log.files import FileLog


@pytest.fixture
def decide(log: FileLog, new_payment: Any) -> Any:
    def write(number: int, *, outcome: str = "review", score: float = 0.5, card: str = "card_1") -> Decision:
        payment = new_payment(number, card=card, seconds=number)
        decision = Decision(
            type="decision",
            event_id=payment.event_id,
            event_time=payment.event_time,
            card_id=card,
            terminal_id=payment.terminal_id,
            amount=payment.amount,
            score=score,
            outcome=outcome,  # type: ignore[arg-type]
            model="m",
            decided_time=payment.event_time,
        )
        log.append(topics.DECISIONS, [(key_of(decision), to_json(decision))])
        return decision

    return write


def ids(alerts: Any) -> list[str]:
    return [alert.decision.event_id for alert in alerts]


def test_the_first_decision_on_a_transaction_holds(decisions: DecisionStore, decide: Any) -> None:
    first = decide(1, outcome="approve", score=0.1)
    decide(1, outcome="decline", score=0.9)
    decisions.refresh()
    assert decisions.get("tx_1") == first
    assert decisions.alerts() == []
    assert decisions.alerts_after(START)[0] == []


def test_alerts_are_newest_first_and_pass_every_filter(decisions: DecisionStore, decide: Any) -> None:
    decide(1)
    decide(2, outcome="approve")
    third = decide(3, outcome="decline", score=0.95, card="card_2")
    decide(4, score=0.4)
    assert ids(decisions.alerts()) == ["tx_4", "tx_3", "tx_1"]
    assert ids(decisions.alerts(outcome="decline")) == ["tx_3"]
    assert ids(decisions.alerts(card_id="card_1")) == ["tx_4", "tx_1"]
    assert ids(decisions.alerts(min_score=0.5)) == ["tx_3", "tx_1"]
    assert ids(decisions.alerts(since=third.event_time)) == ["tx_4", "tx_3"]
    assert ids(decisions.alerts(since=third.event_time + timedelta(hours=1))) == []
    assert ids(decisions.alerts(limit=2)) == ["tx_4", "tx_3"]


def test_a_stream_resumes_behind_any_alert_also_in_a_new_process(
    decisions: DecisionStore, log: FileLog, decide: Any
) -> None:
    for number in range(6):
        decide(number, outcome="approve" if number % 3 == 1 else "review")
    alerts, _ = decisions.alerts_after(START)
    assert ids(alerts) == ["tx_0", "tx_2", "tx_3", "tx_5"]
    for seen, alert in enumerate(alerts):
        restarted = DecisionStore(log, decisions_kept=10, alerts_kept=1)
        assert ids(restarted.alerts_after(alert.resume)[0]) == ids(alerts)[seen + 1 :]


def test_a_stream_whose_position_the_log_does_not_have_starts_again(decisions: DecisionStore, decide: Any) -> None:
    decide(1)
    assert ids(decisions.alerts_after(Position({0: 10**9}))[0]) == ["tx_1"]


def test_only_so_many_decisions_and_alerts_are_kept(log: FileLog, decide: Any) -> None:
    small = DecisionStore(log, decisions_kept=3, alerts_kept=2)
    for number in range(5):
        decide(number)
    assert ids(small.alerts()) == ["tx_4", "tx_3"]
    assert small.get("tx_1") is None
    assert small.get("tx_2") is not None


def test_an_unreadable_decision_is_skipped(decisions: DecisionStore, log: FileLog, decide: Any) -> None:
    log.append(topics.DECISIONS, [("x", b"{}"), ("x", b"not json")])
    decide(1)
    assert ids(decisions.alerts()) == ["tx_1"]
    assert ids(decisions.alerts_after(START)[0]) == ["tx_1"]
