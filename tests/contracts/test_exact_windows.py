"""What a payment's features were when it was decided is what the Spark job writes of it for training: the same numbers.

Random streams of payments over few cards and terminals go through the log, and from there through the scorer, several
in one read, and through the feature job, which lags behind it: some out of order by minutes or weeks, some twice, many
of one moment, some decided by the API, frauds that become known, histories that are full. Offline as online, a payment
sees what had arrived before it. tests/streaming/test_decided_then.py does the same with the whole job on real Spark.
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
from apps.fraud import scorer
from apps.fraud.decisions import DecisionStore
from apps.fraud.recent_payments import RecentPayments
from apps.fraud.service import FraudService
from features.contract.events import Transaction, key_of, to_json
from features.contract.timestamps import DAY, HOUR, from_milliseconds
from features.fraud.velocity import FEATURES
from features.history import arrays
from infra import topics
from infra.log.client import START as LOG_START
from infra.log.files import FileLog
from tests.streaming.test_histories import START, Job, paid

MINUTE = HOUR // 60
WEEKS = 38 * DAY // MINUTE
"""Later than any history reaches back."""


@dataclass(frozen=True)
class Arrival:
    card: int
    terminal: int
    amount: float
    minutes: int
    """Since the arrival before."""
    late_minutes: int
    repeats: int
    """0: it arrives once; 1: once more, right after; 3: once more after two others."""
    reads: bool
    """The scorer has read everything before it; otherwise it comes in one read with the one before."""
    folds: bool
    """The feature job has caught up before it."""
    fraud: bool
    """It becomes known as a fraud at the next time the job catches up."""
    called: bool
    """The API decided it, and so it is in the log."""


Features = dict[str, NDArray[np.float32]]
"""Payment to float32 [len(FEATURES)]."""
ARRIVALS = st.builds(
    Arrival,
    card=st.integers(0, 2),
    terminal=st.integers(0, 2),
    amount=st.sampled_from([1.0, 12.5, 99.99, 800.0]),
    minutes=st.one_of(st.sampled_from([0, 0, 30]), st.integers(0, 600), st.just(6 * 24 * 60)),
    late_minutes=st.sampled_from([0, 0, 0, 30, 3_000, WEEKS]),
    repeats=st.sampled_from([0, 0, 1, 3]),
    reads=st.booleans(),
    folds=st.sampled_from([False, False, True]),
    fraud=st.booleans(),
    called=st.sampled_from([False, False, False, True]),
)
runs = itertools.count()


class Run:
    """One stream through both ways; names are its own, so that runs share a store."""

    def __init__(self, job: Job, folder: Path) -> None:
        self._job = job
        self._name = f"run{next(runs)}"
        self._log = FileLog(folder / f"log-{self._name}")
        self.online: Features = {}
        self.arrived: dict[str, dict[str, Any]] = {}
        """Every payment, in the order of its first arrival."""
        self._seen: list[NDArray[np.float32]] = []
        self._scorer, self._decisions = self._service()
        self._api, _ = self._service()
        self._position = LOG_START
        self._batch: list[dict[str, Any]] = []
        self._frauds: list[dict[str, Any]] = []
        self._again: dict[int, dict[str, Any]] = {}

    def _service(self) -> tuple[FraudService, DecisionStore]:
        recent = RecentPayments(clock=time.time)
        decisions = DecisionStore(self._log, decisions_kept=1_000, alerts_kept=10, on_decisions=recent.observe_decided)
        service = FraudService(
            lambda: None,
            reader=FeastReader(self._job.settings),
            log=self._log,
            decisions=decisions,
            recent=recent,
            clock=time.time,
            watch=self._seen.append,
        )
        return service, decisions

    def take(self, number: int, arrival: Arrival, *, now: int) -> None:
        name, moment = f"{self._name}-{number}", now - arrival.late_minutes * MINUTE
        card, terminal = f"{self._name}-c{arrival.card}", f"{self._name}-t{arrival.terminal}"
        hours = (moment - START) / HOUR
        payment = paid(name, hours, card=card, terminal=terminal, amount=arrival.amount) | {"event_time": moment}
        if arrival.folds:
            self.fold(now=now)
        elif arrival.reads:
            self.read()
        if (again := self._again.pop(number, None)) is not None:
            self._append(again)
        self.arrived[name] = payment
        if arrival.called:
            self._api.score(_event(payment))
            self._seen.pop()
            self._batch.append(payment)
        else:
            self._append(payment)
        if arrival.repeats == 1:
            self._append(payment)
        elif arrival.repeats:
            self._again[number + arrival.repeats] = payment
        if arrival.fraud:
            self._frauds.append(payment)

    def _append(self, payment: dict[str, Any]) -> None:
        event = _event(payment)
        self._log.append(topics.TRANSACTIONS, [(key_of(event), to_json(event))])
        self._batch.append(payment)

    def read(self) -> None:
        """The scorer reads what came since it last did, at once, and decides."""
        records = self._log.read(topics.TRANSACTIONS, self._position)
        self._position = self._position.after(records)
        self._decisions.refresh()
        decided, refused = scorer.score_records(records, service=self._scorer, decisions=self._decisions)
        assert not refused
        self._log.append(topics.DECISIONS, [(key_of(decision), to_json(decision)) for decision in decided])
        if decided:
            (features,) = self._seen
            self.online |= zip([decision.event_id for decision in decided], features, strict=True)
        self._seen.clear()

    def fold(self, *, now: int) -> None:
        """The job catches up; what became known as fraud meanwhile comes after it, in a micro-batch of its own."""
        self.read()
        self._job.pay(*self._batch)
        labels = [
            {"transaction_id": payment["event_id"], "event_time": now, "terminal_id": payment["terminal_id"],
             "fraud": True, "transaction_time": payment["event_time"]}
            for payment in self._frauds
        ]  # fmt: skip
        if labels:
            self._job.pay(labels=tuple(labels))
        self._batch, self._frauds = [], []

    def offline(self) -> Features:
        rows = self._job.features()
        known = [name for name in self.online if name in rows]
        return {name: np.array([rows[name][feature] for feature in FEATURES], dtype=np.float32) for name in known}

    def forgotten(self, name: str) -> bool:
        """Whether the card may have forgotten its past at the time of this payment, when it arrived."""
        payment, before = self.arrived[name], []
        for other in self.arrived.values():
            if other["event_id"] == name:
                break
            before += [other["event_time"]] if other["card_id"] == payment["card_id"] else []
        later = [moment for moment in before if moment >= payment["event_time"]]
        return len(later) >= arrays.CARD_CAP or max(later, default=0) - payment["event_time"] >= arrays.CARD_HORIZON


def _event(payment: dict[str, Any]) -> Transaction:
    fields = payment | {"event_time": from_milliseconds(payment["event_time"])}
    return Transaction(type="transaction", **fields)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("windows"))


def play(job: Job, folder: Path, arrivals: list[Arrival]) -> None:
    run, now = Run(job, folder), START + 100 * 24 * HOUR
    for number, arrival in enumerate(arrivals):
        now += arrival.minutes * MINUTE
        run.take(number, arrival, now=now)
    run.fold(now=now)
    called = {name for number, name in enumerate(run.arrived) if arrivals[number].called}
    assert set(run.online) == set(run.arrived) - called
    offline = run.offline()
    assert all(run.forgotten(name) for name in set(run.online) - set(offline))
    assert not different({name: run.online[name] for name in offline}, offline)


def different(online: Features, offline: Features) -> dict[str, list[tuple[str, float, float]]]:
    """The features that are not the same to the last bit, by payment."""
    assert online.keys() == offline.keys()
    return {
        name: [(feature, a, b) for feature, a, b in zip(FEATURES, seen, offline[name], strict=True) if a != b]
        for name, seen in online.items()
        if not np.array_equal(seen, offline[name])
    }


examples = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@examples
@given(arrivals=st.lists(ARRIVALS, min_size=1, max_size=25))
def test_what_was_decided_on_is_what_training_sees(job: Job, tmp_path: Path, arrivals: list[Arrival]) -> None:
    play(job, tmp_path, arrivals)


@examples
@given(arrivals=st.lists(ARRIVALS, min_size=8, max_size=25))
def test_also_where_cards_and_terminals_have_forgotten(job: Job, tmp_path: Path, arrivals: list[Arrival]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "CARD_CAP", 3)
        patch.setattr(arrays, "TERMINAL_CAP", 4)
        play(job, tmp_path, arrivals)
