"""Turns the features of payments into scores, outcomes and reasons: by the model, or by two rules where it is missing.

Knows nothing of where features come from, nor what becomes of a decision.
"""

import logging
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apps.fraud.detector import FraudModel, explain
from features.contract.events import Reason
from features.fraud import velocity

logger = logging.getLogger(__name__)

Outcome = Literal["approve", "review", "decline"]

RULES = "rules"
"""Stands for the model's version in decisions that the rules made."""
RULE_AMOUNT_RATIO, RULE_AMOUNT = 10.0, 100.0
"""Without a model: review a payment of this many times the card's usual amount, if it is at least of this amount."""
RULE_BURST = 5
"""Without a model: review a payment when its card has made this many in one hour, this one included."""
EXPLAINED_FROM = 0.5
"""Share of the review threshold from which an approved payment gets reasons too."""

_AMOUNT, _AMOUNT_RATIO, _BURST = (velocity.FEATURES.index(name) for name in ("amount", "amount_ratio", "card_count_1h"))


class Judgement(NamedTuple):
    """Judges N payments: each list has one entry per payment."""

    model: str
    """The version of the model, or RULES."""
    scores: list[float]
    outcomes: list[Outcome]
    reasons: list[tuple[Reason, ...]]


def judge(features: NDArray[np.float32], model: FraudModel | None) -> Judgement:
    """features: shape [N, len(velocity.FEATURES)]. The rules judge when there is no model or it fails."""
    if model is not None:
        try:
            return _judge_by_model(features, model)
        except Exception:
            logger.exception("the fraud model of release %s failed; the rules stand in", model.version)
    return _judge_by_rules(features)


def _judge_by_model(features: NDArray[np.float32], model: FraudModel) -> Judgement:
    if model.card.features != velocity.FEATURES:
        raise ValueError("it was trained on other features than this version computes; train again")
    scores = model.score(features)
    review, decline = model.card.review_threshold, model.card.decline_threshold
    reasons: list[tuple[Reason, ...]] = [() for _ in scores]
    explained = np.flatnonzero(scores >= EXPLAINED_FROM * review)
    for row, explanation in zip(explained.tolist(), explain(model, features[explained]), strict=True):
        reasons[row] = explanation
    outcomes = [_outcome(score, review=review, decline=decline) for score in scores.tolist()]
    return Judgement(model.version[:64], scores.tolist(), outcomes, reasons)


def _outcome(score: float, *, review: float, decline: float) -> Outcome:
    """Checks for decline first, even where its threshold is below that of review; a threshold of 1 declines nothing."""
    if score >= decline and decline < 1:
        return "decline"
    return "review" if score >= review else "approve"


def _judge_by_rules(features: NDArray[np.float32]) -> Judgement:
    reasons = [_rule_reasons(row) for row in features]
    return Judgement(
        RULES,
        [0.5 if broken else 0.0 for broken in reasons],
        ["review" if broken else "approve" for broken in reasons],
        reasons,
    )


def _rule_reasons(values: NDArray[np.float32]) -> tuple[Reason, ...]:
    """Returns a reason for each rule that the payment breaks; values: its features."""
    broken = []
    if values[_AMOUNT_RATIO] >= RULE_AMOUNT_RATIO and values[_AMOUNT] >= RULE_AMOUNT:
        broken.append(_AMOUNT_RATIO)
    if values[_BURST] >= RULE_BURST:
        broken.append(_BURST)
    return tuple(
        Reason(code=reason.code, weight=1.0, text=reason.text.format(value=float(values[feature]), usual=1.0))
        for feature in broken
        for reason in [velocity.REASONS[velocity.FEATURES[feature]]]
    )
