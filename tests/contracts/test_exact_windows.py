"""What a payment's features were when it was decided is what the Spark job writes of it for training: the same numbers.

Random streams of payments over few cards and terminals: some late, some twice, frauds that become known, and a feature
job that lags behind the scorer by whole micro-batches. One thing is kept apart, for there the two may differ: payments
of one micro-batch come in order of their time. Offline, a payment sees all of its micro-batch that happened before it;
the scorer could not see what had not arrived.
"""

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from apps.adapters.feast_reader import FeastReader
from apps.fraud.alerts import DecisionBook
from apps.fraud.service import FraudService
from features.events import Transaction, from_milliseconds
from features.velocity import FEATURES, HOUR
from infra.log.files import FileLog
from tests.streaming.test_histories import START, Job, paid

MINUTE = HOUR // 60


@dataclass(frozen=True)
class Arrival:
    card: int
    terminal: int
    amount: float
    minutes: int
    """Since the arrival before."""
    late_minutes: int
    repeats: bool
    """It arrives once more, right after."""
    folds: bool
    """The feature job catches up before it."""
    fraud: bool
    """It becomes known as a fraud at the next time the job catches up."""


ARRIVALS = st.builds(
    Arrival,
    card=st.integers(0, 2),
    terminal=st.integers(0, 2),
    amount=st.sampled_from([1.0, 12.5, 99.99, 800.0]),
    minutes=st.integers(1, 600),
    late_minutes=st.sampled_from([0, 0, 0, 30, 3_000]),
    repeats=st.booleans(),
    folds=st.booleans(),
    fraud=st.booleans(),
)
runs = itertools.count()


class Run:
    """One stream through both ways; names are its own, so that runs share a store."""

    def __init__(self, job: Job, folder: Path) -> None:
        self._job = job
        self._name = f"run{next(runs)}"
        log = FileLog(folder / f"log-{self._name}")
        self.online: dict[str, NDArray[np.float32]] = {}
        self._seen: list[NDArray[np.float32]] = []
        self._service = FraudService(
            lambda: None,
            reader=FeastReader(job.settings),
            log=log,
            decisions=DecisionBook(log, decisions_kept=1_000, alerts_kept=10),
            clock=time.time,
            watch=self._seen.append,
        )
        self._batch: list[dict[str, Any]] = []
        self._frauds: list[dict[str, Any]] = []

    def take(self, number: int, arrival: Arrival, *, now: int) -> None:
        name, moment = f"{self._name}-{number}", now - arrival.late_minutes * MINUTE
        card, terminal = f"{self._name}-c{arrival.card}", f"{self._name}-t{arrival.terminal}"
        hours = (moment - START) / HOUR
        payment = paid(name, hours, card=card, terminal=terminal, amount=arrival.amount) | {"event_time": moment}
        if arrival.folds or any(moment <= other["event_time"] for other in self._batch):
            self.fold(now=now)
        self._decide(payment)
        self._batch += [payment] * (1 + arrival.repeats)
        if arrival.fraud:
            self._frauds.append(payment)

    def _decide(self, payment: dict[str, Any]) -> None:
        moment = from_milliseconds(payment["event_time"])
        told = {name: value for name, value in payment.items() if name != "event_time"}
        self._service.score_many([Transaction(type="transaction", event_time=moment, **told)])
        self.online[payment["event_id"]] = self._seen.pop()[0]

    def fold(self, *, now: int) -> None:
        """The job catches up; what became known as fraud meanwhile comes after it, in a micro-batch of its own."""
        self._job.pay(*self._batch)
        labels = [
            {"transaction_id": one["event_id"], "event_time": now, "terminal_id": one["terminal_id"], "fraud": True,
             "transaction_time": one["event_time"]}
            for one in self._frauds
        ]  # fmt: skip
        if labels:
            self._job.pay(labels=tuple(labels))
        self._batch, self._frauds = [], []

    def offline(self) -> dict[str, NDArray[np.float32]]:
        rows = self._job.features()
        return {name: np.array([rows[name][one] for one in FEATURES], dtype=np.float32) for name in self.online}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("windows"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrivals=st.lists(ARRIVALS, min_size=1, max_size=25))
def test_what_was_decided_on_is_what_training_sees(job: Job, tmp_path: Path, arrivals: list[Arrival]) -> None:
    run, now = Run(job, tmp_path), START + 100 * 24 * HOUR
    for number, arrival in enumerate(arrivals):
        now += arrival.minutes * MINUTE
        run.take(number, arrival, now=now)
    run.fold(now=now)
    offline = run.offline()
    different = {
        name: [(one, a, b) for one, a, b in zip(FEATURES, online, offline[name], strict=True) if a != b]
        for name, online in run.online.items()
        if not np.array_equal(online, offline[name])
    }
    assert not different
