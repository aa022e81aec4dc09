"""Two scorers share the payments in Kafka: every payment gets one decision, and at most one alert."""

import json
import shutil
import urllib.request
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from features.store.feature_store import open_store
from infra import topics
from infra.local import processes
from infra.local.ports import free_port
from infra.log.client import EventLog, read_all
from infra.log.open import open_log
from infra.settings import Settings
from tests.apps.servers import ROOT

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="no java"),
]

SCORERS, CARDS, EACH = 2, 60, 7
BURST = 5
"""Without a model, a card is reviewed from this payment of an hour on (apps/fraud/judgement.py)."""


def payments() -> list[tuple[str, dict[str, Any]]]:
    started = datetime.now(UTC) - timedelta(minutes=20)
    return [
        (
            f"card-{card}",
            {
                "type": "transaction", "event_id": f"p-{card}-{number}", "amount": 5.0, "channel": "chip",
                "event_time": (started + timedelta(seconds=60 * number + card)).isoformat(),
                "card_id": f"card-{card}", "terminal_id": f"terminal-{card % 7}",
            },
        )
        for number in range(EACH)
        for card in range(CARDS)
    ]  # fmt: skip


def decisions(log: EventLog) -> list[dict[str, Any]]:
    return [json.loads(record.value) for record in read_all(log, topics.DECISIONS)]


def decided_by(port: int) -> float:
    """Returns how many decisions the scorer with its metrics on this port has made."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("headrace_fraud_decisions_total{"))


def test_two_scorers_decide_every_payment_once(kafka_settings: Settings, tmp_path: Path) -> None:
    settings = kafka_settings.model_copy(update={"kafka_partitions": 6, "kafka_timeout_seconds": 20.0})
    log, expected, ports = open_log(settings), payments(), [free_port() for _ in range(SCORERS)]
    half = len(expected) // 2
    sent = [(card, json.dumps(payment).encode()) for card, payment in expected]
    log.append(topics.TRANSACTIONS, sent[:half])
    shares = [
        Settings(
            **{name: getattr(settings, name) for name in settings.model_fields_set - {"data_dir"}},
            data_dir=tmp_path / f"scorer-{share}", scorer_share=share, scorer_shares=SCORERS,
            scorer_metrics_port=ports[share],
        )
        for share in range(SCORERS)
    ]  # fmt: skip
    try:
        for share in shares:
            open_store(share)
            processes.start(share, "scorer", "score", extra={"PYTHONPATH": str(ROOT)})
        assert processes.wait_until(lambda: len(decisions(log)) >= half, seconds=180), log_tails(shares)
        log.append(topics.TRANSACTIONS, sent[half:] + sent[half : half + 50])  # some of them twice
        end = log.end(topics.TRANSACTIONS)
        assert processes.wait_until(lambda: log.committed("scorer", topics.TRANSACTIONS).covers(end), seconds=120), (
            log_tails(shares)
        )
        decided = decisions(log)
        by_scorer = [decided_by(port) for port in ports]
    finally:
        for share in shares:
            processes.stop_all(share)
    assert Counter(decision["event_id"] for decision in decided) == Counter(
        payment["event_id"] for _, payment in expected
    )
    alerts = Counter(decision["event_id"] for decision in decided if decision["outcome"] != "approve")
    assert alerts == Counter(f"p-{card}-{number}" for card in range(CARDS) for number in range(BURST - 1, EACH))
    assert sum(by_scorer) == len(expected)
    assert min(by_scorer) > 0


def log_tails(shares: list[Settings]) -> str:
    return "\n".join(processes.log_tail(share, "scorer") for share in shares)
