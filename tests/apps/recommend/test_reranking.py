"""The rules of a surface: each does what it says, in the order that is documented, and says what it dropped."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from apps.recommend.reranking import RerankContext, Slate, diversify, rerank
from apps.recommend.rules.schemas import Diversity, SurfaceRules

COLOURS = ["red", "red", "red", "blue", "blue", "green"]
RED, BLUE, GREEN = (f"category == '{colour}'" for colour in ("red", "blue", "green"))
COUNT = len(COLOURS)
VECTORS = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 1, 2]]


def ground(
    *, bought: tuple[int, ...] = (), seen: tuple[int, ...] = (), shown: dict[int, int] | None = None
) -> RerankContext:
    """Six candidates with ids i0 to i5, best first."""
    return RerankContext(
        items=np.arange(COUNT),
        matches=lambda when: np.array([f"category == '{one}'" == when for one in COLOURS]),
        values_of=lambda field, rows: [COLOURS[row] for row in rows],
        vectors=lambda rows: np.eye(3, dtype=np.float32)[
            [("red", "blue", "green").index(COLOURS[row]) for row in rows]
        ],
        row_of=lambda name: int(name[1:]) if name[1:].isdigit() and int(name[1:]) < COUNT else None,
        visited=lambda kind, days: np.isin(np.arange(COUNT), bought if kind == "bought" else seen),
        shown=lambda hours: np.repeat(*np.array(list((shown or {0: 0}).items())).T),
    )


def arranged(
    *rules: dict[str, Any], n: int = COUNT, on: RerankContext | None = None, drop_seen: bool = False, **more: Any
) -> Slate:
    document = SurfaceRules.model_validate({"rules": rules, **more})
    log_odds: NDArray[np.float64] = np.linspace(1.0, 0.0, COUNT)
    return rerank(
        np.arange(COUNT), log_odds, on or ground(), document,
        n=n, drop_seen=drop_seen, exploration=document.exploration, rng=np.random.default_rng(2), traced=True,
    )  # fmt: skip


def test_without_rules_the_ranking_is_shown_for_certain() -> None:
    slate = arranged(n=3)
    assert (slate.rows, slate.propensities) == ([0, 1, 2], [1.0, 1.0, 1.0])
    assert slate.dropped == {row: ("cut", "ranked below the first 3") for row in (3, 4, 5)}


def test_boost_and_bury_multiply_the_odds() -> None:
    assert arranged({"kind": "boost", "when": "category == 'green'", "factor": np.e**0.9}).rows == [0, 5, 1, 2, 3, 4]
    assert arranged({"kind": "bury", "when": "category == 'red'", "factor": np.e**-2}).rows == [3, 4, 5, 0, 1, 2]
    both = arranged(
        {"kind": "boost", "when": "category == 'green'", "factor": 4},
        {"kind": "bury", "when": "category == 'green'", "factor": 0.25},
    )
    assert both.rows == [0, 1, 2, 3, 4, 5]
    assert both.log_odds[5] == pytest.approx(0)


def test_hidden_items_are_not_shown_and_the_trace_says_why() -> None:
    slate = arranged({"kind": "hide", "when": "category == 'blue'"})
    assert slate.rows == [0, 1, 2, 5]
    assert slate.dropped[3] == ("hide", "hidden: category == 'blue'")


def test_a_pin_stands_at_its_position_whatever_the_rank_unless_it_is_barred() -> None:
    assert arranged({"kind": "pin", "item_id": "i5", "position": 2}, n=3).rows == [0, 5, 1]
    slate = arranged(
        {"kind": "pin", "item_id": "i5", "position": 1}, {"kind": "hide", "when": "category == 'green'"}, n=2
    )
    assert slate.rows == [0, 1]
    assert arranged({"kind": "pin", "item_id": "unknown", "position": 1}, n=2).rows == [0, 1]
    last = arranged({"kind": "pin", "item_id": "i0", "position": 6}, {"kind": "hide", "when": "category == 'red'"})
    assert last.rows == [3, 4, 5]
    short = arranged({"kind": "pin", "item_id": "i5", "position": 6}, {"kind": "hide", "when": "category == 'red'"})
    assert (short.rows, short.pinned) == ([3, 4, 5], {5})


def test_a_quota_bounds_each_value_and_pins_count_first() -> None:
    slate = arranged({"kind": "quota", "field": "category", "most": 1})
    assert slate.rows == [0, 3, 5]
    assert slate.dropped[1] == ("quota", "more than 1 of one category")
    pinned = arranged(
        {"kind": "quota", "field": "category", "most": 1}, {"kind": "pin", "item_id": "i2", "position": 3}
    )
    assert pinned.rows == [3, 5, 2]
    smallest = [{"kind": "quota", "field": "category", "most": most} for most in (2, 1)]
    assert arranged(*smallest).rows == [0, 3, 5]


def test_what_was_bought_is_left_out_or_buried() -> None:
    on = ground(bought=(0,), seen=(1,))
    assert arranged({"kind": "bought", "days": 7}, on=on).rows == [1, 2, 3, 4, 5]
    assert arranged({"kind": "seen", "days": 7, "factor": np.e**-2}, on=on).rows == [0, 2, 3, 4, 5, 1]
    slate = arranged(on=on, drop_seen=True)
    assert slate.rows == [0, 2, 3, 4, 5]
    assert slate.dropped[1][0] == "seen"


def test_what_was_shown_often_makes_room() -> None:
    slate = arranged({"kind": "rotate", "factor": 0.5, "most": 2}, on=ground(shown={0: 9, 1: 1}))
    assert slate.log_odds[0] == pytest.approx(1.0 + 2 * np.log(0.5))
    assert slate.rows == [2, 3, 4, 1, 5, 0]


def test_diversity_shows_different_things_first() -> None:
    assert arranged(diversity={"weight": 0.6}, n=3).rows == [0, 3, 5]
    assert arranged(diversity={"weight": 0.01}, n=3).rows == [0, 1, 2]


@given(
    seed=st.integers(0, 999), count=st.integers(2, 30), n=st.integers(1, 12), weight=st.floats(0.01, 1),
    pool=st.integers(2, 40),
)  # fmt: skip
def test_diversity_chooses_as_its_definition_says(seed: int, count: int, n: int, weight: float, pool: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.random.default_rng(seed + 1).permutation(count)
    found = diversify(order, lambda rows: vectors[rows], Diversity(weight=weight, pool=pool), n=n)
    assert sorted(found.tolist()) == list(range(count))
    size = min(max(pool, n), count)
    chosen: list[int] = []
    for row in found[: min(n, size)].tolist():
        values = {}
        for place, other in enumerate(order[:size].tolist()):
            if other not in chosen:
                worst = max((max(0.0, float(vectors[other] @ vectors[one])) for one in chosen), default=0.0)
                values[other] = (1 - weight) * (1 - place / size) - weight * worst
        assert values[row] >= max(values.values()) - 1e-5
        chosen.append(row)


def test_explored_items_may_come_from_beyond_the_list_and_pins_do_not_explore() -> None:
    rules = ({"kind": "pin", "item_id": "i0", "position": 1},)
    slate = arranged(*rules, n=3, exploration={"policy": "epsilon", "epsilon": 0.99, "pool": 3})
    assert slate.rows[0] == 0
    assert slate.propensities[0] == 1.0
    assert slate.explored == set(slate.rows[1:]) & {3, 4, 5}
    assert all(0 < chance < 1 for chance in slate.propensities[1:])


def test_rules_that_make_no_sense_are_refused_with_their_place() -> None:
    for rule, told in (
        ({"kind": "boost", "when": "price <", "factor": 2}, "character 8"),
        ({"kind": "boost", "when": "price < 1", "factor": 0.5}, "greater than 1"),
        ({"kind": "paint"}, "'boost', 'bury', 'hide', 'pin', 'quota'"),
    ):
        with pytest.raises(ValueError, match="validation error") as raised:
            SurfaceRules.model_validate({"rules": [rule]})
        assert told in str(raised.value)
