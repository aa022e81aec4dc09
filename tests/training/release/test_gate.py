"""Tests the gate: its metrics, and that a baseline is served when the model is not better than every baseline."""

from math import log2
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from features.recommender.candidates import BASELINES, CANDIDATE_FEATURES, SOURCES, UNRANKED, Candidates, Visitor
from training.recommender.examples import RankingExample, RetrievalExample
from training.release.gate import candidate_recall, evaluate

NEW_VISITOR = Visitor(0, *([np.empty(0, dtype=np.int64)] * 3), *([np.empty(0)] * 2))


def visit(*targets: int) -> RetrievalExample:
    """Returns a visit that bought these items."""
    return RetrievalExample(NEW_VISITOR, np.array(targets, dtype=np.int64))


def example(items: list[int], **features: list[float]) -> RankingExample:
    """Returns the candidates of one visit with these values of these features, zeros elsewhere."""
    values = np.zeros((len(items), len(CANDIDATE_FEATURES)), dtype=np.float32)
    for name, column in features.items():
        values[:, CANDIDATE_FEATURES.index(name)] = column
    ranks = np.full((len(items), len(SOURCES)), UNRANKED, dtype=np.int64)
    candidates = Candidates(np.array(items, dtype=np.int64), ranks, values, ranks[:, 0])
    return RankingExample(candidates, np.zeros(len(items), dtype=bool))


ITEMS = [1, 2, 3]
BASELINE_FEATURES = {"item_orders_30d": [3.0, 2.0, 1.0], "co_score": [1.0, 3.0, 2.0]}
VISITS = [visit(2), visit(2, 3), visit()]


def scorer(*scores: float) -> Any:
    def score(candidates: Candidates) -> NDArray[np.float32]:
        return np.array(scores, dtype=np.float32)[: len(candidates.items)]

    return score


@pytest.mark.parametrize(
    "scores",
    [(1, 3, 2), (3, 2, 1), (float("nan"),) * 3, (0, 2, 3)],
    ids=["as good as the best baseline", "as popularity", "not a number", "worse"],
)
def test_a_model_that_is_not_better_than_every_baseline_is_not_served(scores: tuple[float, ...]) -> None:
    candidates = [example(ITEMS, **BASELINE_FEATURES) for _ in VISITS]
    result = evaluate(VISITS, candidates, scorer(*scores), model="ranker", k=2, items=10)
    assert (result.served, result.best_baseline) == ("co_purchase", "co_purchase")


def test_a_better_model_is_served_and_every_metric_is_reported() -> None:
    candidates = [example(ITEMS, item_orders_30d=[3.0, 2.0, 1.0]) for _ in VISITS]
    result = evaluate(VISITS, candidates, scorer(0, 3, 2), model="ranker", k=2, items=10)
    assert (result.served, result.metric, set(result.scores)) == ("ranker", "ndcg@2", {"ranker", *BASELINES})
    assert result.metrics["ranker"] == {"ndcg@2": 1, "recall@2": 1, "hit@2": 1, "coverage": 0.2, "orders": 2}
    popularity = ((1 / log2(3)) + (1 / log2(3)) / (1 + 1 / log2(3))) / 2
    assert result.scores["popularity"] == pytest.approx(popularity)
    assert result.metrics["popularity"]["recall@2"] == pytest.approx(0.75)


def test_a_baseline_breaks_ties_by_popularity_as_in_service() -> None:
    candidates = [example(ITEMS, item_orders_30d=[1.0, 2.0, 3.0])]
    result = evaluate([visit(3)], candidates, scorer(0, 0, 0), model="ranker", k=1, items=10)
    assert result.scores["repurchase"] == result.scores["popularity"] == 1


def test_without_visits_a_baseline_is_served() -> None:
    result = evaluate([visit()], [example(ITEMS)], scorer(1, 2, 3), model="ranker", k=5, items=0)
    assert result.served in BASELINES
    assert result.metrics["ranker"] == {"ndcg@5": 0, "recall@5": 0, "hit@5": 0, "coverage": 0, "orders": 0}


def test_the_recall_of_candidates_bounds_every_ranking() -> None:
    candidates = [example([1, 2]), example([1, 2]), example([])]
    assert candidate_recall([visit(2), visit(2, 3), visit()], candidates) == pytest.approx(0.75)
    assert candidate_recall([], []) == 0
