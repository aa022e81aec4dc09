"""Measures fraud scores, and chooses the thresholds of review and decline. Knows arrays of scores, no model."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from features.contract.timestamps import DAY
from features.history.arrays import Array

BLOCKED_DAYS = 7
"""Days before the test in which a known fraud still blocks its card; a card blocked earlier has been replaced."""
MIN_DECLINES = 10
"""Fewest validation payments that precision is estimated from."""


@dataclass(frozen=True, slots=True)
class LabelledPayments:
    """Holds payments and their labels as arrays, in order of time."""

    times: NDArray[np.int64]
    """Milliseconds since the epoch."""
    cards: Array
    is_fraud: NDArray[np.bool_]
    label_times: NDArray[np.int64]
    """When the label became known, ms; the far future where it is not known."""


def fraud_metrics(
    scores: NDArray[np.float64], payments: LabelledPayments, *, test: NDArray[np.int64], alerts_per_day: float
) -> dict[str, float]:
    """Returns AUC, average precision and card precision of the scores of the rows `test`.

    payments: the tested ones and older ones, by which cards were blocked.
    """
    k = max(1, round(alerts_per_day))
    is_fraud = payments.is_fraud[test]
    return {
        "auc_roc": float(roc_auc_score(is_fraud, scores)),
        "average_precision": float(average_precision_score(is_fraud, scores)),
        f"card_precision_at_{k}": card_precision(scores, payments, test=test, k=k),
    }


def card_precision(
    scores: NDArray[np.float64], payments: LabelledPayments, *, test: NDArray[np.int64], k: int
) -> float:
    """Returns the share of compromised cards among the k cards with a day's highest scores, as the mean over test days.

    A card counts once a day, with its highest score. It is left out after it was found, or when a fraud of it was known
    before the day (and not longer than BLOCKED_DAYS before the test). NaN without a test day. Le Borgne et
    al., Reproducible Machine Learning for Credit Card Fraud Detection (2022), chapter 4.
    """
    cards, is_fraud = payments.cards, payments.is_fraud
    start = int(payments.times[test[0]]) // DAY * DAY if len(test) else 0
    recent_frauds = is_fraud & (payments.label_times >= start - BLOCKED_DAYS * DAY)
    detected: set[object] = set()
    precisions = []
    test_days = payments.times[test] // DAY
    for day in np.unique(test_days):
        rows = np.flatnonzero(test_days == day)
        blocked = detected | set(cards[recent_frauds & (payments.label_times <= day * DAY)].tolist())
        rows = rows[[card not in blocked for card in cards[test[rows]]]]
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        ranked = list(dict.fromkeys(cards[test[rows]].tolist()))[:k]
        compromised = set(cards[test[rows]][is_fraud[test[rows]]].tolist())
        hits = compromised.intersection(ranked)
        detected |= hits
        precisions.append(len(hits) / k)
    return float(np.mean(precisions)) if precisions else float("nan")


def alert_thresholds(
    scores: NDArray[np.float64], is_fraud: NDArray[np.bool_], *, alerts: int, decline_precision: float
) -> tuple[float, float]:
    """Returns the (review, decline) thresholds, the lowest scores of each outcome, from validation scores, shape [N].

    `alerts` payments reach review; of those that reach decline at least `decline_precision` are fraud. Where no
    threshold has that precision on MIN_DECLINES payments, decline is 1: nothing is declined.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    review = float(ranked[min(max(alerts, 1), len(ranked)) - 1])
    precision = np.cumsum(is_fraud[order]) / np.arange(1, len(ranked) + 1)
    enough = np.flatnonzero((precision >= decline_precision) & (np.arange(len(ranked)) >= MIN_DECLINES - 1))
    decline = float(ranked[enough[-1]]) if len(enough) else 1.0
    return review, max(review, decline)
