"""How good fraud scores are, and from which score on to act. Knows arrays of scores and labels, no model."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from features.contract.timestamps import DAY
from features.history.arrays import Array

BLOCKED_DAYS = 7
"""A card whose fraud became known is out of the game this long before the test; then it has been replaced."""
FEWEST_DECLINES = 10
"""Fewer validation payments say nothing about precision."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What came of each payment; arrays over all of them, in order of time."""

    times: NDArray[np.int64]
    """Milliseconds since the epoch."""
    cards: Array
    truth: NDArray[np.bool_]
    known_times: NDArray[np.int64]
    """When the label became known, ms; the far future where it is not."""


def quality(
    scores: NDArray[np.float64], outcomes: Outcomes, *, test: NDArray[np.int64], alerts_per_day: float
) -> dict[str, float]:
    """Metrics of the scores of the rows `test`; of the outcomes, older rows tell which cards were blocked."""
    k = max(1, round(alerts_per_day))
    truth = outcomes.truth[test]
    return {
        "auc_roc": float(roc_auc_score(truth, scores)),
        "average_precision": float(average_precision_score(truth, scores)),
        f"card_precision_at_{k}": card_precision(scores, outcomes, test=test, k=k),
    }


def card_precision(scores: NDArray[np.float64], outcomes: Outcomes, *, test: NDArray[np.int64], k: int) -> float:
    """Share of compromised cards among the k cards with the highest score of a day, the mean over the test's days.

    A card counts once a day, with its highest score; it leaves when it was found, or when a fraud of it was known
    before the day (and not longer than BLOCKED_DAYS before the test). Undefined, nan, without a test day. Le Borgne et
    al., Reproducible Machine Learning for Credit Card Fraud Detection (2022), chapter 4.
    """
    cards, truth = outcomes.cards, outcomes.truth
    start = int(outcomes.times[test[0]]) // DAY * DAY if len(test) else 0
    frauds = truth & (outcomes.known_times >= start - BLOCKED_DAYS * DAY)
    found: set[object] = set()
    precisions = []
    day_of = outcomes.times[test] // DAY
    for day in np.unique(day_of):
        at = np.flatnonzero(day_of == day)
        gone = found | set(cards[frauds & (outcomes.known_times <= day * DAY)].tolist())
        at = at[[card not in gone for card in cards[test[at]]]]
        at = at[np.argsort(-scores[at], kind="stable")]
        ranked = list(dict.fromkeys(cards[test[at]].tolist()))[:k]
        compromised = set(cards[test[at]][truth[test[at]]].tolist())
        hits = compromised.intersection(ranked)
        found |= hits
        precisions.append(len(hits) / k)
    return float(np.mean(precisions)) if precisions else float("nan")


def alert_thresholds(
    scores: NDArray[np.float64], known: NDArray[np.bool_], *, alerts: int, decline_precision: float
) -> tuple[float, float]:
    """(review, decline) thresholds from validation scores, shape [N]: act on scores from there on.

    `alerts` payments reach review; of those that reach decline at least `decline_precision` are fraud. Where no
    threshold can promise that on FEWEST_DECLINES payments, decline is 1: nothing is declined.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    review = float(ranked[min(max(alerts, 1), len(ranked)) - 1])
    precision = np.cumsum(known[order]) / np.arange(1, len(ranked) + 1)
    enough = np.flatnonzero((precision >= decline_precision) & (np.arange(len(ranked)) >= FEWEST_DECLINES - 1))
    decline = float(ranked[enough[-1]]) if len(enough) else 1.0
    return review, max(review, decline)
