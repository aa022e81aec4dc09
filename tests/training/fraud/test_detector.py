"""Tests fraud training: the split by time, that the better of detector and baseline is served, and the export."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from features.contract import columns
from features.contract.release import FRAUD
from features.contract.timestamps import DAY
from features.fraud.velocity import FEATURES, SKEWED
from training.fraud import detector
from training.fraud.detector import (
    BASELINE,
    LABEL_TIME,
    MODEL,
    FraudConfig,
    TooFewFraudsError,
    join_labels,
    payment_times,
    split_by_time,
    train_fraud,
)
from training.fraud.metrics import LabelledPayments, alert_thresholds, card_precision
from training.models.fraud import Logistic, Scaling, ServedDetector

START = datetime(2026, 1, 1, tzinfo=UTC)
QUICK = FraudConfig(epochs=3, members=1, hidden=(16,), cross_layers=1, batch_rows=512)


def tables(*, rows: int = 12_000, days: int = 80, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Returns random features and labels: fraud depends on one feature and a product of two; it is known in a week."""
    rng = np.random.default_rng(seed)
    values = {name: rng.lognormal(1, 1, rows) if name in SKEWED else rng.normal(0, 1, rows) for name in FEATURES}
    product = values["amount_deviation"] * values["hour"]
    log_odds = 2.0 * product + 2.0 * np.log1p(values["card_count_1h"]) - 7.5
    is_fraud = rng.random(rows) < 1 / (1 + np.exp(-log_odds))
    seconds = np.sort(rng.random(rows)) * days * 86_400
    times = [START + timedelta(seconds=second) for second in seconds.tolist()]
    stamps = pa.array(times, pa.timestamp("us", tz="UTC"))
    ids = [f"tx_{number}" for number in range(rows)]
    features = {
        columns.TRANSACTION: ids,
        columns.EVENT_TIMESTAMP: stamps,
        columns.CREATED_TIMESTAMP: stamps,
        columns.CARD: [f"card_{number}" for number in rng.integers(0, 2_000, rows)],
        **values,
    }
    fraud_rows = np.flatnonzero(is_fraud)
    label_times = [
        times[row] + timedelta(days=float(delay))
        for row, delay in zip(fraud_rows, rng.uniform(1, 7, len(fraud_rows)), strict=True)
    ]
    labels = {
        columns.TRANSACTION: [ids[row] for row in fraud_rows],
        "event_time": [int(moment.timestamp() * 1000) for moment in label_times],
        "fraud": [True] * len(fraud_rows),
    }
    return pa.table(features), pa.table(labels)


def test_a_transaction_gets_its_newest_features_and_its_newest_label() -> None:
    moment = pa.scalar(START, pa.timestamp("us", tz="UTC"))
    later = pa.scalar(START + timedelta(hours=1), pa.timestamp("us", tz="UTC"))
    features = pa.table(
        {
            columns.TRANSACTION: ["b", "a", "a", "c"],
            columns.EVENT_TIMESTAMP: [later, moment, moment, later],
            columns.CREATED_TIMESTAMP: [moment, later, moment, moment],
            "amount": [1.0, 3.0, 2.0, 4.0],
        }
    )
    labels = pa.table({columns.TRANSACTION: ["a", "a", "b"], "event_time": [20, 10, 5], "fraud": [False, True, True]})
    rows = join_labels(features, labels).select([columns.TRANSACTION, "amount", "fraud", LABEL_TIME]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("a", 3.0, False, 20),
        ("b", 1.0, True, 5),
        ("c", 4.0, False, None),
    ]


def test_the_split_has_a_gap_before_the_test_and_leaves_out_the_recent_end() -> None:
    config = FraudConfig(test_days=10, validation_days=5, label_delay_days=7)
    times = np.arange(0, 60 * DAY + 1, DAY)
    split = split_by_time(times, config)
    assert times[split.test[-1]] < 60 * DAY - 7 * DAY
    assert split.test_start == times[split.test[0]] == 43 * DAY
    assert times[split.validation[-1]] < split.test_start - 7 * DAY
    assert times[split.train[-1]] < times[split.validation[0]] == 31 * DAY


def test_labels_that_became_known_during_the_test_are_not_learnt_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = tables(rows=4_000)
    known_frauds: list[Any] = []
    monkeypatch.setattr(detector, "export", lambda *args, **more: None)
    fit = detector.fit_models

    def recorded(*args: Any, **more: Any) -> dict[str, ServedDetector]:
        known_frauds.append(more["known_fraud"].copy())
        return fit(*args, **more)

    monkeypatch.setattr(detector, "fit_models", recorded)
    examples = join_labels(features, labels)
    split = split_by_time(payment_times(examples), QUICK)
    late = labels.set_column(
        1, "event_time", pa.array(np.maximum(labels["event_time"].to_numpy(), split.test_start + 1))
    )
    train_fraud(QUICK, examples=examples, out=tmp_path, seed=0)
    assert known_frauds[0][split.train].sum() > 0
    with pytest.raises(TooFewFraudsError, match="train"):
        train_fraud(QUICK, examples=join_labels(features, late), out=tmp_path, seed=0)


def test_card_precision_counts_a_card_once_a_day_until_it_is_detected() -> None:
    far = np.iinfo(np.int64).max
    times = np.array([0, 1, 2, 3, DAY, DAY + 1, DAY + 2], dtype=np.int64)
    cards = np.array(["a", "a", "b", "c", "a", "c", "d"], dtype=object)
    truth = np.array([True, True, False, True, True, True, False])
    known = np.where(truth, far - 1, far)
    scores = np.array([0.9, 0.8, 0.7, 0.1, 0.9, 0.6, 0.5])
    test = np.arange(7)
    # Day 0: a and b have the highest scores, a is detected. Day 1: a is left out; c and d are next, c is detected.
    assert card_precision(scores, LabelledPayments(times, cards, truth, known), test=test, k=2) == pytest.approx(0.5)
    known_early = known.copy()
    known_early[3] = DAY
    # Now c was known before day 1 began, so only d is left.
    assert card_precision(scores, LabelledPayments(times, cards, truth, known_early), test=test, k=2) == pytest.approx(
        0.25
    )


def test_thresholds_keep_the_budget_and_the_precision() -> None:
    scores = np.linspace(0, 1, 101)
    known = scores >= 0.8
    review, decline = alert_thresholds(scores, known, alerts=40, decline_precision=0.9)
    assert (scores >= review).sum() == 40
    assert known[scores >= decline].mean() >= 0.9
    assert review <= decline < 0.8
    assert alert_thresholds(scores, scores < 0, alerts=40, decline_precision=0.9)[1] == 1.0


@pytest.mark.slow
def test_a_detector_that_does_not_beat_its_baseline_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poor(config: FraudConfig, scaling: Scaling, baseline: Logistic, **more: Any) -> ServedDetector:
        return ServedDetector(scaling, [Logistic(-baseline.out.weight.detach()[0], torch.zeros(1))]).eval()

    monkeypatch.setattr(detector, "_fit_detector", poor)
    card = train_fraud(QUICK, examples=join_labels(*tables()), out=tmp_path, seed=0)
    assert card.gate.served == card.gate.best_baseline == BASELINE
    assert card.gate.scores[MODEL] < card.gate.scores[BASELINE]
    saved = load_file(tmp_path / FRAUD.replace(".onnx", ".safetensors"))
    assert not any("cross" in name for name in saved)
    assert score_with_onnx(tmp_path, np.ones((1, len(FEATURES)), dtype=np.float32)).shape == (1,)


def test_data_without_frauds_is_refused_with_what_to_do(tmp_path: Path) -> None:
    features, labels = tables(rows=500)
    with pytest.raises(TooFewFraudsError, match="import more days"):
        train_fraud(QUICK, examples=join_labels(features, labels.slice(0, 0)), out=tmp_path, seed=0)


@pytest.mark.slow
def test_a_run_learns_exports_and_is_reproducible(tmp_path: Path) -> None:
    config = FraudConfig(members=2, epochs=8, batch_rows=256)
    examples = join_labels(*tables())
    card = train_fraud(config, examples=examples, out=tmp_path / "a", seed=1)
    fraud_rate = examples["fraud"].to_numpy().mean()
    assert card.gate.scores[MODEL] > card.gate.scores[BASELINE] > 1.5 * fraud_rate
    assert card.gate.served == MODEL
    assert card.gate.metrics[MODEL]["auc_roc"] > 0.7
    assert len(card.reference_values) == len(card.features) == len(FEATURES)
    assert 0 < card.review_threshold <= card.decline_threshold <= 1

    again = train_fraud(config, examples=examples, out=tmp_path / "b", seed=1)
    assert again == card
    rows = np.column_stack([examples[name].to_numpy() for name in FEATURES]).astype(np.float32)
    scores = score_with_onnx(tmp_path / "a", rows)
    assert scores.shape == (len(rows),)
    assert ((scores >= 0) & (scores <= 1)).all()
    # Calibrated: the mean score is about the share of frauds.
    assert scores.mean() == pytest.approx(fraud_rate, rel=0.25)
    np.testing.assert_allclose(score_with_onnx(tmp_path / "a", rows[:1]), scores[:1], atol=1e-6)
    np.testing.assert_array_equal(score_with_onnx(tmp_path / "b", rows), scores)


def score_with_onnx(folder: Path, rows: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / FRAUD, providers=["CPUExecutionProvider"])
    (scores,) = session.run(["probability"], {"features": rows})
    return np.asarray(scores)
