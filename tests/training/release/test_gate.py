"""The gate: metrics against values worked out by hand, and the floor is served when the model is not better."""

from math import log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.recommender.candidates import BASELINES, CANDIDATE_FEATURES, SOURCES, UNRANKED, Candidates, Visitor
from training.recommender.examples import RankingExample, RetrievalExample
from training.release.gate import candidate_recall, evaluate, list_metrics

NOBODY = Visitor(0, *([np.empty(0, dtype=np.int64)] * 3), *([np.empty(0)] * 2))


def order(*targets: int) -> RetrievalExample:
    return RetrievalExample(NOBODY, np.array(targets, dtype=np.int64))


def drawn(items: list[int], **features: list[float]) -> RankingExample:
    """Candidates of one order with these values of these features, zeros elsewhere."""
    values = np.zeros((len(items), len(CANDIDATE_FEATURES)), dtype=np.float32)
    for name, column in features.items():
        values[:, CANDIDATE_FEATURES.index(name)] = column
    ranks = np.full((len(items), len(SOURCES)), UNRANKED, dtype=np.int64)
    candidates = Candidates(np.array(items, dtype=np.int64), ranks, values, ranks[:, 0])
    return RankingExample(candidates, np.zeros(len(items), dtype=bool))


def metrics(ranked: list[int], targets: list[int], k: int) -> tuple[float, float, float]:
    return list_metrics(np.array(ranked, dtype=np.int64), np.array(targets, dtype=np.int64), k=k)


BY_HAND = [
    ([5, 7, 9], [5], 3, (1, 1, 1)),
    ([5, 7, 9], [9], 3, (1 / log2(4), 1, 1)),
    ([5, 7, 9], [9], 2, (0, 0, 0)),
    ([5, 7, 9, 4], [7, 4], 4, ((1 / log2(3) + 1 / log2(5)) / (1 + 1 / log2(3)), 1, 1)),
    ([5, 7], [7, 1, 2, 3], 2, (1 / log2(3) / (1 + 1 / log2(3)), 0.5, 1)),  # only two places for four items
    ([5], [5, 6], 10, (1 / (1 + 1 / log2(3)), 0.5, 1)),  # a list shorter than k
    ([], [5], 10, (0, 0, 0)),
]


@pytest.mark.parametrize(("ranked", "targets", "k", "expected"), BY_HAND)
def test_metrics_are_those_worked_out_by_hand(
    ranked: list[int], targets: list[int], k: int, expected: tuple[float, float, float]
) -> None:
    assert metrics(ranked, targets, k) == pytest.approx(expected)


UNIQUE = st.lists(st.integers(0, 30), min_size=1, max_size=20, unique=True)


@given(UNIQUE, UNIQUE, st.integers(1, 25))
def test_metrics_lie_between_0_and_1_and_a_perfect_list_has_1(ranked: list[int], targets: list[int], k: int) -> None:
    assert all(0 <= value <= 1 + 1e-12 for value in metrics(ranked, targets, k))
    perfect = targets + [item for item in ranked if item not in targets]
    assert metrics(perfect, targets, k) == pytest.approx((1, 1, 1))
    assert metrics([item + 100 for item in ranked], targets, k) == (0, 0, 0)


@given(UNIQUE, UNIQUE, st.integers(1, 25), st.data())
def test_moving_a_hit_up_never_lowers_ndcg(ranked: list[int], targets: list[int], k: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(ranked) - 1))
    up = [ranked[place], *ranked[:place], *ranked[place + 1 :]]
    if ranked[place] in targets:
        assert metrics(up, targets, k)[0] >= metrics(ranked, targets, k)[0] - 1e-12


ITEMS = [1, 2, 3]
FLOOR_FEATURES = {"item_orders_30d": [3.0, 2.0, 1.0], "co_score": [1.0, 3.0, 2.0]}
ORDERS = [order(2), order(2, 3), order()]


def scorer(*scores: float) -> Any:
    def score(candidates: Candidates) -> NDArray[np.float32]:
        return np.array(scores, dtype=np.float32)[: len(candidates.items)]

    return score


@pytest.mark.parametrize(
    "scores",
    [(1, 3, 2), (3, 2, 1), (float("nan"),) * 3, (0, 2, 3)],
    ids=["as good as the floor", "as popularity", "not a number", "worse"],
)
def test_a_model_that_is_not_better_than_every_floor_is_not_served(scores: tuple[float, ...]) -> None:
    candidates = [drawn(ITEMS, **FLOOR_FEATURES) for _ in ORDERS]
    result = evaluate(ORDERS, candidates, scorer(*scores), model="ranker", k=2, items=10)
    assert (result.served, result.best_baseline) == ("co_purchase", "co_purchase")


def test_a_better_model_is_served_and_everything_is_told() -> None:
    candidates = [drawn(ITEMS, item_orders_30d=[3.0, 2.0, 1.0]) for _ in ORDERS]
    result = evaluate(ORDERS, candidates, scorer(0, 3, 2), model="ranker", k=2, items=10)
    assert (result.served, result.metric, set(result.scores)) == ("ranker", "ndcg@2", {"ranker", *BASELINES})
    assert result.metrics["ranker"] == {"ndcg@2": 1, "recall@2": 1, "hit@2": 1, "coverage": 0.2, "orders": 2}
    popularity = ((1 / log2(3)) + (1 / log2(3)) / (1 + 1 / log2(3))) / 2
    assert result.scores["popularity"] == pytest.approx(popularity)
    assert result.metrics["popularity"]["recall@2"] == pytest.approx(0.75)


def test_a_floor_falls_back_on_what_sells_as_it_does_in_service() -> None:
    candidates = [drawn(ITEMS, item_orders_30d=[1.0, 2.0, 3.0])]
    result = evaluate([order(3)], candidates, scorer(0, 0, 0), model="ranker", k=1, items=10)
    assert result.scores["repurchase"] == result.scores["popularity"] == 1


def test_without_orders_the_floor_is_served() -> None:
    result = evaluate([order()], [drawn(ITEMS)], scorer(1, 2, 3), model="ranker", k=5, items=0)
    assert result.served in BASELINES
    assert result.metrics["ranker"] == {"ndcg@5": 0, "recall@5": 0, "hit@5": 0, "coverage": 0, "orders": 0}


def test_the_recall_of_candidates_bounds_every_ranking() -> None:
    candidates = [drawn([1, 2]), drawn([1, 2]), drawn([])]
    assert candidate_recall([order(2), order(2, 3), order()], candidates) == pytest.approx(0.75)
    assert candidate_recall([], []) == 0
