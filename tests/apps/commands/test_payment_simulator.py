"""The payment simulator keeps its promises: sizes, order, ground truth, late labels, and where it writes."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apps.commands.payment_simulator import LIVE_LABELS, LIVE_TRANSACTIONS, LONGEST_DELAY_DAYS, simulate, write
from features.contract.events import LOGGED, Label, Transaction
from features.contract.timestamps import DAY, milliseconds
from infra import topics
from infra.log.client import START
from infra.log.files import FileLog

END = datetime(2011, 12, 9, tzinfo=UTC)
CARDS, TERMINALS, DAYS = 300, 300, 60


@pytest.fixture(scope="module")
def simulated() -> tuple[pa.Table, pa.Table]:
    return simulate(cards=CARDS, terminals=TERMINALS, days=DAYS, end=END, seed=3)


def test_payments_are_in_time_order_within_the_simulated_days(simulated: tuple[pa.Table, pa.Table]) -> None:
    times = simulated[0]["event_time"].to_numpy()
    assert (np.diff(times) >= 0).all()
    assert milliseconds(END) - DAYS * DAY <= times[0]
    assert times[-1] < milliseconds(END)
    assert 0.7 * CARDS * DAYS < simulated[0].num_rows < 1.1 * CARDS * DAYS


def test_about_one_payment_in_a_hundred_is_fraud_in_each_way(
    simulated: tuple[pa.Table, pa.Table],
) -> None:
    fraud = simulated[0]["fraud"].to_numpy()
    assert 0.006 < fraud.mean() < 0.016
    assert set(simulated[0].filter(simulated[0]["fraud"])["scenario"].to_pylist()) == {"terminal", "card", "amount"}
    assert set(simulated[0].filter(pa.compute.invert(simulated[0]["fraud"]))["scenario"].to_pylist()) == {""}


def test_no_single_amount_separates_fraud_from_honest_payments(simulated: tuple[pa.Table, pa.Table]) -> None:
    fraud, amounts = simulated[0]["fraud"].to_numpy(), simulated[0]["amount"].to_numpy()
    assert np.median(amounts[fraud]) < np.quantile(amounts[~fraud], 0.95)
    assert amounts[~fraud].max() > np.median(amounts[fraud]) * 5


def test_labels_arrive_late_and_tell_the_truth(simulated: tuple[pa.Table, pa.Table]) -> None:
    transactions, labels = simulated
    truth = dict(zip(transactions["event_id"].to_pylist(), transactions["fraud"].to_pylist(), strict=True))
    labelled = zip(labels["transaction_id"].to_pylist(), labels["fraud"].to_pylist(), strict=True)
    assert all(truth[transaction] == fraud for transaction, fraud in labelled)
    delays = (labels["event_time"].to_numpy() - labels["transaction_time"].to_numpy()) / DAY
    assert delays.min() >= 0
    assert delays.max() <= LONGEST_DELAY_DAYS
    assert 4 < delays.mean() < 8
    assert (np.diff(labels["event_time"].to_numpy()) >= 0).all()


def test_ids_are_unique_tokens_and_no_card_numbers(simulated: tuple[pa.Table, pa.Table]) -> None:
    ids = simulated[0]["event_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert all(card.startswith("card_") for card in simulated[0]["card_id"].unique().to_pylist())


def test_one_seed_makes_one_world_and_another_seed_another(simulated: tuple[pa.Table, pa.Table]) -> None:
    again = simulate(cards=CARDS, terminals=TERMINALS, days=DAYS, end=END, seed=3)
    assert simulated[0].equals(again[0])
    assert simulated[1].equals(again[1])
    assert not simulated[0].equals(simulate(cards=CARDS, terminals=TERMINALS, days=DAYS, end=END, seed=4)[0])


def test_the_past_goes_to_the_log_and_the_rest_is_kept(simulated: tuple[pa.Table, pa.Table], tmp_path: Path) -> None:
    transactions, labels = simulated
    log = FileLog(tmp_path / "log")
    written = write(log, transactions=transactions, labels=labels, end=END, live_days=10, live_dir=tmp_path / "live")
    now = milliseconds(END) - 10 * DAY

    payments = [
        LOGGED.validate_json(record.value) for record in log.read(topics.TRANSACTIONS, START, max_records=10**6)
    ]
    assert len(payments) == written.transactions
    assert all(isinstance(event, Transaction) and not event.scored for event in payments)
    assert max(milliseconds(event.event_time) for event in payments) < now

    records = log.read(topics.LABELS, START, max_records=10**6)
    logged = [LOGGED.validate_json(record.value) for record in records]
    assert len(logged) == written.labels
    assert all(isinstance(label, Label) and milliseconds(label.event_time) <= now for label in logged)
    assert all(isinstance(label, Label) and label.card_id and label.transaction_time for label in logged)
    assert all(record.key.startswith("card_") for record in records)

    live = pq.read_table(tmp_path / "live" / LIVE_TRANSACTIONS)
    assert live.num_rows + len(payments) == transactions.num_rows
    assert live["event_time"].to_numpy().min() >= now
    to_come = pq.read_table(tmp_path / "live" / LIVE_LABELS)["event_time"].to_numpy()
    assert len(to_come) == written.live_labels
    assert now < to_come.min() <= to_come.max() <= milliseconds(END)
