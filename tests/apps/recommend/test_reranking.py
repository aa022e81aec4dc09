"""Re-ranking: each rule does what it says, in the documented order, and records what it dropped."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from apps.recommend.candidate_set import CandidateSet
from apps.recommend.cold_items import match_cold_items
from apps.recommend.filters.evaluation import ItemColumns, ItemFilters
from apps.recommend.recent_impressions import ShownSlate
from apps.recommend.reranking import RerankContext, Slate, diversify, rerank
from apps.recommend.rules.schemas import Diversity, SurfaceRules
from features.contract.columns import EVENT_TYPE_CODES
from features.contract.timestamps import DAY, HOUR
from features.recommender.candidates import CANDIDATE_FEATURES, SOURCES, Candidates, Visitor
from features.recommender.catalogue import Catalogue

COLOURS = ["red", "red", "red", "blue", "blue", "green"]
COUNT = len(COLOURS)
VECTORS = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 1, 2]]
NOW = 1_790_000_000_000


def candidate_set(vectors: NDArray[np.float32], categories: list[str]) -> CandidateSet:
    """A row for each vector, which is an item of the catalogue with id i0 and up."""
    count = len(vectors)
    ids = tuple(f"i{item}" for item in range(count))
    catalogue = Catalogue(
        ids, ids, np.ones(count, dtype=np.float32), np.full((count, 1), -1, dtype=np.int32),
        np.zeros((count, 1), dtype=np.float32), vectors, {name: item for item, name in enumerate(ids)},
        tuple(categories),
    )  # fmt: skip
    columns = ItemColumns(ids, ids, catalogue.prices, categories)
    candidates = Candidates(
        np.arange(count), np.zeros((count, len(SOURCES)), dtype=np.int64),
        np.zeros((count, len(CANDIDATE_FEATURES)), dtype=np.float32), np.full(count, -1),
    )  # fmt: skip
    cold_items = match_cold_items((), catalogue, columns, previous=None)
    return CandidateSet(candidates, catalogue, ItemFilters(columns), cold_items, count)


def context(
    *,
    bought: tuple[int, ...] = (),
    seen: tuple[int, ...] = (),
    shown: dict[int, int] | None = None,
    age: int = DAY,
) -> RerankContext:
    """Six candidates with ids i0 to i5, best first, and a visitor who bought, saw and was shown some `age` ms ago.

    shown: item to the number of times.
    """
    event_types = [EVENT_TYPE_CODES["purchase"]] * len(bought) + [EVENT_TYPE_CODES["view"]] * len(seen)
    count = len(event_types)
    visitor = Visitor(
        NOW, np.array([*bought, *seen], dtype=np.int64), np.full(count, NOW - age),
        np.array(event_types, dtype=np.int64), np.ones(count), np.ones(count),
    )  # fmt: skip
    slates = [ShownSlate(NOW - age, np.array([item])) for item, times in (shown or {}).items() for _ in range(times)]
    return RerankContext(candidate_set(VECTORS, COLOURS), visitor, slates)


def reranked(
    *rules: dict[str, Any], n: int = COUNT, on: RerankContext | None = None, drop_seen: bool = False, **more: Any
) -> Slate:
    document = SurfaceRules.model_validate({"rules": rules, **more})
    log_odds: NDArray[np.float64] = np.linspace(1.0, 0.0, COUNT)
    return rerank(
        np.arange(COUNT), log_odds, on or context(), document,
        n=n, drop_seen=drop_seen, exploration=document.exploration, rng=np.random.default_rng(2), traced=True,
    )  # fmt: skip


def test_without_rules_the_ranking_is_shown_for_certain() -> None:
    slate = reranked(n=3)
    assert (slate.rows, slate.propensities) == ([0, 1, 2], [1.0, 1.0, 1.0])
    assert slate.dropped == {row: ("cut", "ranked below the first 3") for row in (3, 4, 5)}


def test_boost_and_bury_multiply_the_odds() -> None:
    assert reranked({"kind": "boost", "when": "category == 'green'", "factor": np.e**0.9}).rows == [0, 5, 1, 2, 3, 4]
    assert reranked({"kind": "bury", "when": "category == 'red'", "factor": np.e**-2}).rows == [3, 4, 5, 0, 1, 2]
    both = reranked(
        {"kind": "boost", "when": "category == 'green'", "factor": 4},
        {"kind": "bury", "when": "category == 'green'", "factor": 0.25},
    )
    assert both.rows == [0, 1, 2, 3, 4, 5]
    assert both.log_odds[5] == pytest.approx(0)


def test_hidden_items_are_not_shown_and_the_trace_says_why() -> None:
    slate = reranked({"kind": "hide", "when": "category == 'blue'"})
    assert slate.rows == [0, 1, 2, 5]
    assert slate.dropped[3] == ("hide", "hidden: category == 'blue'")


def test_a_pin_stands_at_its_position_whatever_the_rank_unless_it_is_excluded() -> None:
    assert reranked({"kind": "pin", "item_id": "i5", "position": 2}, n=3).rows == [0, 5, 1]
    slate = reranked(
        {"kind": "pin", "item_id": "i5", "position": 1}, {"kind": "hide", "when": "category == 'green'"}, n=2
    )
    assert slate.rows == [0, 1]
    assert reranked({"kind": "pin", "item_id": "unknown", "position": 1}, n=2).rows == [0, 1]
    last = reranked({"kind": "pin", "item_id": "i0", "position": 6}, {"kind": "hide", "when": "category == 'red'"})
    assert last.rows == [3, 4, 5]
    short = reranked({"kind": "pin", "item_id": "i5", "position": 6}, {"kind": "hide", "when": "category == 'red'"})
    assert (short.rows, short.pinned) == ([3, 4, 5], {5})


def test_a_quota_bounds_each_value_and_pins_count_first() -> None:
    slate = reranked({"kind": "quota", "field": "category", "most": 1})
    assert slate.rows == [0, 3, 5]
    assert slate.dropped[1] == ("quota", "more than 1 of one category")
    pinned = reranked(
        {"kind": "quota", "field": "category", "most": 1}, {"kind": "pin", "item_id": "i2", "position": 3}
    )
    assert pinned.rows == [3, 5, 2]
    smallest = [{"kind": "quota", "field": "category", "most": most} for most in (2, 1)]
    assert reranked(*smallest).rows == [0, 3, 5]


def test_what_was_bought_is_left_out_or_buried() -> None:
    on = context(bought=(0,), seen=(1,))
    assert reranked({"kind": "bought", "days": 7}, on=on).rows == [1, 2, 3, 4, 5]
    assert reranked({"kind": "seen", "days": 7, "factor": np.e**-2}, on=on).rows == [2, 3, 4, 5, 0, 1]
    slate = reranked(on=on, drop_seen=True)
    assert slate.rows == [2, 3, 4, 5]
    assert slate.dropped[1][0] == "seen"
    assert reranked({"kind": "bought", "days": 7}, on=context(bought=(0,), age=8 * DAY)).rows == [0, 1, 2, 3, 4, 5]


def test_what_was_shown_often_makes_room() -> None:
    rule = {"kind": "rotate", "hours": 2, "factor": 0.5, "most": 2}
    slate = reranked(rule, on=context(shown={0: 9, 1: 1}, age=HOUR))
    assert slate.log_odds[0] == pytest.approx(1.0 + 2 * np.log(0.5))
    assert slate.rows == [2, 3, 4, 1, 5, 0]
    assert reranked(rule, on=context(shown={0: 9, 1: 1}, age=3 * HOUR)).rows == [0, 1, 2, 3, 4, 5]


def test_diversity_shows_different_things_first() -> None:
    assert reranked(diversity={"weight": 0.6}, n=3).rows == [0, 3, 5]
    assert reranked(diversity={"weight": 0.01}, n=3).rows == [0, 1, 2]


@given(
    seed=st.integers(0, 999), count=st.integers(2, 30), n=st.integers(1, 12), weight=st.floats(0.01, 1),
    pool=st.integers(2, 40),
)  # fmt: skip
def test_diversity_chooses_as_its_definition_says(seed: int, count: int, n: int, weight: float, pool: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.random.default_rng(seed + 1).permutation(count)
    diverse = diversify(order, candidate_set(vectors, [""] * count), Diversity(weight=weight, pool=pool), n=n)
    assert sorted(diverse.tolist()) == list(range(count))
    size = min(max(pool, n), count)
    chosen: list[int] = []
    for row in diverse[: min(n, size)].tolist():
        values = {}
        for position, other in enumerate(order[:size].tolist()):
            if other not in chosen:
                similarities = (max(0.0, float(vectors[other] @ vectors[earlier])) for earlier in chosen)
                values[other] = (1 - weight) * (1 - position / size) - weight * max(similarities, default=0.0)
        assert values[row] >= max(values.values()) - 1e-5
        chosen.append(row)


def test_explored_items_may_come_from_beyond_the_list_and_pins_do_not_explore() -> None:
    rules = ({"kind": "pin", "item_id": "i0", "position": 1},)
    slate = reranked(*rules, n=3, exploration={"policy": "epsilon", "epsilon": 0.99, "pool": 3})
    assert slate.rows[0] == 0
    assert slate.propensities[0] == 1.0
    assert slate.explored == set(slate.rows[1:]) & {3, 4, 5}
    assert all(0 < chance < 1 for chance in slate.propensities[1:])


def test_invalid_rules_are_refused_with_the_position_of_the_mistake() -> None:
    for rule, message in (
        ({"kind": "boost", "when": "price <", "factor": 2}, "character 8"),
        ({"kind": "boost", "when": "price < 1", "factor": 0.5}, "greater than 1"),
        ({"kind": "paint"}, "'boost', 'bury', 'hide', 'pin', 'quota'"),
    ):
        with pytest.raises(ValueError, match="validation error") as raised:
            SurfaceRules.model_validate({"rules": [rule]})
        assert message in str(raised.value)
