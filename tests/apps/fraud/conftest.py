"""Stand-ins for what surrounds the fraud service; the event log is the real one, in a folder of the test's own."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.fraud.decisions import DecisionStore
from apps.fraud.detector import FraudModel
from apps.fraud.recent_payments import RecentPayments
from apps.fraud.service import FraudService
from features.contract.events import Transaction
from features.contract.release import FraudModelCard, GateResult
from features.fraud.velocity import FEATURES
from features.history.arrays import CARD_COLUMNS, FRAUD_COLUMNS, FRAUD_NAMES, TERMINAL_COLUMNS, History, from_lists
from infra.log.files import FileLog

START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


class Reader:
    """Stored histories by id; while `broken`, it fails like a store that cannot be reached."""

    def __init__(self) -> None:
        self.cards: dict[str, dict[str, Any]] = {}
        self.terminals: dict[str, dict[str, Any]] = {}
        self.broken = False

    def card_histories(self, ids: Sequence[str]) -> History:
        return from_lists(self._rows(self.cards, ids), CARD_COLUMNS)

    def terminal_histories(self, ids: Sequence[str]) -> tuple[History, History]:
        rows = self._rows(self.terminals, ids)
        return from_lists(rows, TERMINAL_COLUMNS), from_lists(rows, FRAUD_COLUMNS, names=FRAUD_NAMES)

    def _rows(self, rows: dict[str, dict[str, Any]], ids: Sequence[str]) -> list[dict[str, Any]]:
        if self.broken:
            raise OSError("the store is away")
        return [rows.get(name, {}) for name in ids]


class BurstModel:
    """Log-odds that rise with the payments of the last day and with the amount: -6 + count + amount / 200."""

    version = "model-1"

    def __init__(self) -> None:
        self.broken = False
        self.card = FraudModelCard(
            feature_service="fraud_v1",
            gate=GateResult(
                metric="average_precision", scores={}, model="m", best_baseline="f", served="m", metrics={}
            ),
            features=FEATURES,
            reference_values=tuple(1.0 if name.startswith("card_count") else 0.0 for name in FEATURES),
            review_threshold=0.3,
            decline_threshold=0.9,
            alert_budget_per_day=10,
        )

    def score(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        if self.broken:
            raise RuntimeError("the model is broken")
        count = matrix[:, FEATURES.index("card_count_24h")]
        amount = matrix[:, FEATURES.index("amount")]
        return 1 / (1 + np.exp(6 - count.astype(np.float64) - amount / 200))


def payment(number: int, *, card: str = "card_1", seconds: float = 0, amount: float = 20.0, **more: Any) -> Transaction:
    return Transaction(
        type="transaction",
        event_id=f"tx_{number}",
        event_time=START + timedelta(seconds=seconds),
        card_id=card,
        terminal_id=more.pop("terminal", "term_1"),
        amount=amount,
        **more,
    )


@pytest.fixture
def new_payment() -> Callable[..., Transaction]:
    return payment


@pytest.fixture
def log(tmp_path: Path) -> FileLog:
    return FileLog(tmp_path / "log")


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def model() -> BurstModel:
    return BurstModel()


@pytest.fixture
def recent() -> RecentPayments:
    return RecentPayments(clock=START.timestamp)


@pytest.fixture
def decisions(log: FileLog, recent: RecentPayments) -> DecisionStore:
    return DecisionStore(log, decisions_kept=1_000, alerts_kept=100, on_decisions=recent.observe_decided)


@pytest.fixture
def service(
    log: FileLog, reader: Reader, model: BurstModel, decisions: DecisionStore, recent: RecentPayments
) -> FraudService:
    return FraudService(
        lambda: model, reader=reader, log=log, decisions=decisions, recent=recent, clock=START.timestamp
    )


@pytest.fixture
def new_process(log: FileLog, reader: Reader, model: BurstModel) -> Callable[..., FraudService]:
    """Returns a service over the same log that has seen nothing yet; its clock stands at 0."""

    def make(current_model: Callable[[], FraudModel | None] = lambda: model) -> FraudService:
        recent = RecentPayments(clock=lambda: 0.0)
        decisions = DecisionStore(log, decisions_kept=10, alerts_kept=10, on_decisions=recent.observe_decided)
        return FraudService(
            current_model, reader=reader, log=log, decisions=decisions, recent=recent, clock=lambda: 0.0
        )

    return make
