"""Runs the fraud detector and its baseline on the Fraud Detection Handbook's simulated payments, by its protocol.

    python infra/bench/fraud_handbook.py transactions.parquet

Four folds: train 7 days, labels 7 days late, test 7 days; a card whose fraud is known by then leaves the test. The
Handbook (Le Borgne et al., 2022) publishes AUC / AP / CP@100 of .868/.623/.297 for logistic regression, .876/.675/.303
for a neural network and .869/.687/.303 for XGBoost. Needs that data set, so it is not among the tests.
"""

import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from features.contract import columns
from features.contract.timestamps import DAY, milliseconds
from features.fraud.velocity import CHANNEL_CODES, Payments, encode
from features.history.arrays import Array, History, hash_ids
from training.fraud.detector import BASELINE, MODEL, FraudConfig, FraudSplit, fit_models, probabilities, skewed_indices
from training.fraud.metrics import LabelledPayments, fraud_metrics
from training.models.fraud import Scaling

FOLDS = [datetime(2018, month, day, tzinfo=UTC) for month, day in ((7, 25), (8, 1), (8, 8), (8, 15))]
DELAY_DAYS = 7
CAP = 300


def histories(keys: Array, entries: dict[str, Array], *, requested_keys: Array, at: Array) -> History:
    """Returns the last CAP entries of each requested key up to the requested time (ms); keys are small integers."""
    order = np.lexsort((entries[columns.TIMES], keys))
    sorted_entries = {name: column[order] for name, column in entries.items()}
    start_time = min(int(at.min()), int(sorted_entries[columns.TIMES].min(initial=int(at.min()))))
    sort_keys = keys[order].astype(np.int64) << 40 | sorted_entries[columns.TIMES] - start_time
    key_starts = requested_keys.astype(np.int64) << 40
    ends = np.searchsorted(sort_keys, key_starts | at - start_time, side="right")
    starts = np.maximum(np.searchsorted(sort_keys, key_starts), ends - CAP)
    return History(np.array([0, len(order)]), sorted_entries).slices(starts, ends)


def not_blocked(test: Array, since_train: Array, *, cards: Array, times: Array, label_times: Array) -> Array:
    """Returns which test rows belong to cards without a known fraud when their day began."""
    first_known = np.full(cards.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(first_known, cards[since_train], label_times[since_train])
    return first_known[cards[test]] >= times[test] // DAY * DAY


def main(path: Path) -> None:
    """Prints the metrics of each fold, and their means."""
    table = pq.read_table(path)
    times = table["TX_DATETIME"].cast("int64").to_numpy()
    cards, terminals = table["CUSTOMER_ID"].to_numpy(), table["TERMINAL_ID"].to_numpy()
    amounts, is_fraud = table["TX_AMOUNT"].to_numpy(), table["TX_FRAUD"].to_numpy().astype(bool)
    label_times = np.where(is_fraud, times + DELAY_DAYS * DAY, np.iinfo(np.int64).max)
    names = np.char.add("t", np.arange(terminals.max() + 1).astype(str)).astype(object)
    hashes = hash_ids(table["TRANSACTION_ID"].cast("string").to_pylist())
    common = {columns.TIMES: times, columns.AMOUNTS: amounts, columns.EVENT_HASHES: hashes}
    results = []
    for start in FOLDS:
        begin = milliseconds(start)
        cuts = np.searchsorted(times, [begin - 40 * DAY, begin, begin + 7 * DAY, begin + 14 * DAY, begin + 21 * DAY])
        past = np.arange(cuts[0], cuts[4])
        train, test = np.arange(cuts[1], cuts[2]), np.arange(cuts[3], cuts[4])
        since_train = np.arange(cuts[1], cuts[4])
        test = test[not_blocked(test, since_train, cards=cards, times=times, label_times=label_times)]
        rows = np.concatenate((train, test))
        frauds = past[is_fraud[past]]
        recent = {name: column[past] for name, column in common.items()}
        at = times[rows]
        entries = {**recent, columns.COUNTERPARTIES: names[terminals[past]]}
        card_histories = histories(cards[past], entries, requested_keys=cards[rows], at=at)
        terminal_histories = histories(terminals[past], entries, requested_keys=terminals[rows], at=at)
        fraud_entries = {
            columns.TIMES: times[frauds],
            columns.FRAUD_KNOWN_TIMES: label_times[frauds],
            columns.FRAUD_HASHES: hashes[frauds],
        }
        fraud_histories = histories(terminals[frauds], fraud_entries, requested_keys=terminals[rows], at=at)
        channels = np.full(len(rows), CHANNEL_CODES["chip"])
        payments = Payments(
            times[rows], amounts[rows], channels, cards[rows].astype(object), names[terminals[rows]], hashes[rows]
        )
        matrix = encode(card_histories, terminal_histories, fraud_histories, payments)
        # The last of the seven training days chooses the epoch; the Handbook's validation folds are other weeks.
        last_day = int(np.searchsorted(times[train], begin + 6 * DAY))
        numbers = np.arange(len(rows))
        split = FraudSplit(numbers[:last_day], numbers[last_day : len(train)], numbers[len(train) :], begin + 14 * DAY)
        scaling = Scaling(torch.from_numpy(matrix[: len(train)]), skewed_indices())
        config = replace(FraudConfig(), validation_days=1, test_days=7, label_delay_days=DELAY_DAYS)
        models = fit_models(config, scaling, features=matrix, known_fraud=is_fraud[rows], split=split, seed=0)
        payments_so_far = LabelledPayments(times[past], cards[past], is_fraud[past], label_times[past])
        scores = {name: probabilities(model, matrix[len(train) :]) for name, model in models.items()}
        metrics_by_model = {
            name: fraud_metrics(model_scores, payments_so_far, test=test - cuts[0], alerts_per_day=100)
            for name, model_scores in scores.items()
        }
        results.append(metrics_by_model)
        print(
            start.date(), {name: [round(value, 3) for value in row.values()] for name, row in metrics_by_model.items()}
        )
    for name in (MODEL, BASELINE):
        metrics = results[0][name]
        print(name, {metric: round(float(np.mean([row[name][metric] for row in results])), 3) for metric in metrics})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
