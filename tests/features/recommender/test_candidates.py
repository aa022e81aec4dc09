"""Candidates come from their sources, for the visitor, and only from what was known at the moment of the request."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.contract import columns
from features.contract.timestamps import DAY
from features.history.arrays import USER_COLUMNS, from_lists, hash_ids
from features.recommender.candidates import (
    BASELINES,
    CANDIDATE_FEATURES,
    NEVER_DAYS,
    RECENT_ITEMS,
    SOURCES,
    UNRANKED,
    Candidates,
    Visitor,
    build_visitor,
    generate_candidates,
)
from features.recommender.catalogue import ITEM_WINDOWS, Catalogue, ItemSet

AT = 20_000 * DAY
IDS = tuple("abcdefgh")
VIEW, CART, PURCHASE, RETURN = (columns.EVENT_TYPE_CODES[kind] for kind in ("view", "cart", "purchase", "return"))
NOBODY = np.zeros(2, dtype=np.float32)
NO_HITS = np.empty(0, dtype=np.int64)

Entry = tuple[int, str, int]
"""Days before AT, item, kind."""


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    """Eight items; a's neighbours are b (0.9) and c (0.5), b's are c (0.8)."""
    neighbours = np.full((8, 2), -1, dtype=np.int32)
    similarities = np.zeros((8, 2), dtype=np.float32)
    neighbours[0], similarities[0] = [1, 2], [0.9, 0.5]
    neighbours[1, 0], similarities[1, 0] = 2, 0.8
    angles = np.arange(8) * math.pi / 16
    vectors = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    prices = np.array([1, 2, 3, 4, 5, 6, 7, 0], dtype=np.float32)
    return Catalogue(IDS, IDS, prices, neighbours, similarities, vectors, {name: n for n, name in enumerate(IDS)})


def windows(**orders: float) -> NDArray[np.float32]:
    """Item windows in which the named items sold so often in 7 and 30 days."""
    result = np.zeros((len(IDS), len(ITEM_WINDOWS)), dtype=np.float32)
    for name, count in orders.items():
        result[IDS.index(name), [ITEM_WINDOWS.index("item_orders_7d"), ITEM_WINDOWS.index("item_orders_30d")]] = count
    return result


def visitor(catalogue: Catalogue, *entries: Entry, at: int = AT, session: list[str] | None = None) -> Visitor:
    entries = tuple(sorted(entries, reverse=True))
    row: dict[str, list[Any]] = {
        columns.TIMES: [AT - days * DAY for days, _, _ in entries],
        columns.ITEMS: [item for _, item, _ in entries],
        columns.EVENT_TYPES: [kind for _, _, kind in entries],
        columns.PRICES: [2.0] * len(entries),
        columns.QUANTITIES: [3.0] * len(entries),
        columns.EVENT_HASHES: hash_ids([str(number) for number in range(len(entries))]).tolist(),
    }
    return build_visitor(from_lists([row], USER_COLUMNS), catalogue, at=at, session_items=session)


def generated(
    catalogue: Catalogue, person: Visitor, sold: NDArray[np.float32] | None = None, **more: Any
) -> Candidates:
    options: dict[str, Any] = {"tower_hits": NO_HITS, "user_vector": NOBODY, "per_source": 6} | more
    return generate_candidates(person, catalogue, windows() if sold is None else sold, **options)


def names(candidates: Candidates) -> str:
    return "".join(IDS[item] for item in candidates.items)


def source(candidates: Candidates, name: str) -> str:
    """The items that a source drew, best first."""
    ranks = candidates.ranks[:, SOURCES.index(name)]
    return "".join(IDS[candidates.items[row]] for row in np.argsort(ranks) if ranks[row] != UNRANKED)


def test_each_source_draws_its_own_best_first(catalogue: Catalogue) -> None:
    person = visitor(catalogue, (2, "a", PURCHASE), (1, "h", PURCHASE), (1, "d", RETURN))
    candidates = generated(
        catalogue, person, windows(e=5, f=9), tower_hits=np.array([6, 1]), user_vector=catalogue.vectors[6]
    )
    assert {name: source(candidates, name) for name in SOURCES} == {
        "co_purchase": "bc", "repurchase": "ha", "two_tower": "gb", "trending": "fe",
    }  # fmt: skip
    assert names(candidates) == "abcefgh"
    assert candidates.features.shape == (7, len(CANDIDATE_FEATURES))
    assert candidates.column("rank_two_tower").tolist() == [0, 0.5, 0, 0, 0, 1, 0]
    assert candidates.column("tower_score")[names(candidates).index("g")] == pytest.approx(1)


def test_scores_of_co_purchase_add_up_and_name_the_item_that_speaks_most(catalogue: Catalogue) -> None:
    candidates = generated(catalogue, visitor(catalogue, (9, "a", PURCHASE), (2, "b", VIEW)))
    c = names(candidates).index("c")
    assert candidates.column("co_score")[c] == pytest.approx(0.5 * 0.5 + 0.8)  # a visit earlier counts half
    assert candidates.column("co_best")[c] == pytest.approx(0.8)
    assert IDS[candidates.seed_items[c]] == "b"
    assert candidates.seed_items[names(candidates).index("a")] == -1


def test_what_a_visitor_did_before_is_described(catalogue: Catalogue) -> None:
    person = visitor(
        catalogue, (40, "a", PURCHASE), (10, "a", PURCHASE), (10, "a", PURCHASE), (5, "a", RETURN), (0, "b", VIEW)
    )  # fmt: skip
    candidates = generated(catalogue, person)
    a, b = names(candidates).index("a"), names(candidates).index("b")
    own = {name: float(candidates.column(name)[a]) for name in CANDIDATE_FEATURES if name.startswith("own_")}
    assert own == pytest.approx(
        {
            "own_orders": 2, "own_score": 0.5 ** (40 / 60) + 0.5 ** (10 / 60), "own_idle_days": 10,
            "own_due": 10 / 30, "own_share": 1, "own_returned": 1, "own_viewed": 0,
        }
    )  # fmt: skip
    assert (candidates.column("own_viewed")[b], candidates.column("own_idle_days")[b]) == (1, NEVER_DAYS)
    user = {name: float(candidates.column(name)[0]) for name in CANDIDATE_FEATURES if name.startswith("user_")}
    assert user == pytest.approx(
        {
            "user_orders_30d": 1, "user_orders_90d": 2, "user_orders_400d": 2, "user_spend_90d": 18,
            "user_mean_price": 2, "user_items": 1, "user_basket": 1.5, "user_idle_days": 10, "user_interval_days": 30,
        }
    )  # fmt: skip
    assert candidates.column("price_ratio")[b] == pytest.approx(0)
    assert set(BASELINES.values()) <= set(CANDIDATE_FEATURES)


def test_nobody_and_strangers_get_what_is_trending(catalogue: Catalogue) -> None:
    for person in (
        visitor(catalogue),
        visitor(catalogue, (1, "unknown", PURCHASE)),
        visitor(catalogue, session=["unknown"]),
    ):
        assert len(person.recent_items) == 0
        candidates = generated(catalogue, person, windows(e=1))
        assert names(candidates) == "e"
        assert np.isfinite(candidates.features).all()
    assert len(generated(catalogue, visitor(catalogue)).items) == 0


def test_items_of_the_session_are_recent_before_the_store_knows_them(catalogue: Catalogue) -> None:
    person = visitor(catalogue, (3, "e", PURCHASE), session=["a", "unknown", "b"])
    assert [IDS[item] for item in person.recent_items] == ["e", "a", "b"]
    assert person.recency_weights.tolist() == [0.5, 1, 1]
    assert source(generated(catalogue, person), "co_purchase") == "cb"
    assert person.prices.tolist() == [2, 1, 0, 2]


def test_only_the_latest_items_are_read(catalogue: Catalogue) -> None:
    person = visitor(catalogue, *((day, IDS[day % 8], PURCHASE) for day in range(1, 90)))
    assert len(person.recent_items) == len(person.recency_weights) == RECENT_ITEMS
    assert IDS[person.recent_items[-1]] == "b"


def test_a_mask_is_kept_by_every_source_and_may_leave_nothing(catalogue: Catalogue) -> None:
    person = visitor(catalogue, (2, "a", PURCHASE), (1, "h", PURCHASE))
    hits = np.array([6, 1, 3])
    for allowed in ("", "b", "agh", "bcef"):
        mask = np.array([name in allowed for name in IDS])
        candidates = generated(catalogue, person, windows(e=5, f=9), tower_hits=hits, allowed=ItemSet.from_mask(mask))
        whole = generated(catalogue, person, windows(e=5, f=9), tower_hits=hits)
        assert set(names(candidates)) == set(names(whole)) & set(allowed)
        assert candidates.features.shape == (len(candidates.items), len(CANDIDATE_FEATURES))


def test_no_source_draws_more_than_its_share(catalogue: Catalogue) -> None:
    person = visitor(catalogue, *((day, name, PURCHASE) for day, name in enumerate(IDS, start=1)))
    candidates = generated(catalogue, person, windows(**dict.fromkeys(IDS, 3)), tower_hits=np.arange(8), per_source=2)
    assert all(len(source(candidates, name)) <= 2 for name in SOURCES)


@pytest.mark.parametrize("kind", [VIEW, CART, PURCHASE, RETURN])
def test_a_planted_future_event_changes_nothing(catalogue: Catalogue, kind: int) -> None:
    past: list[Entry] = [(9, "a", PURCHASE), (0, "b", VIEW)]
    later = visitor(catalogue, *past, (-1, "a", kind), (-400, "g", kind))
    sold = windows(e=5)
    without, planted = generated(catalogue, visitor(catalogue, *past), sold), generated(catalogue, later, sold)
    assert np.array_equal(planted.items, without.items)
    assert np.array_equal(planted.features, without.features)
    assert np.array_equal(planted.seed_items, without.seed_items)


ENTRIES = st.lists(
    st.tuples(
        st.integers(-3, 500), st.sampled_from((*IDS, "unknown")), st.sampled_from((VIEW, CART, PURCHASE, RETURN))
    ),
    max_size=30,
)


@given(
    ENTRIES,
    st.lists(st.permutations(range(8)), max_size=1),
    st.integers(0, 9),
    st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_whatever_the_past_features_are_finite_and_items_are_there_once(
    catalogue: Catalogue, entries: list[Entry], hits: list[list[int]], per_source: int, allowed: list[bool]
) -> None:
    tower = np.array(hits[0] if hits else [], dtype=np.int64)
    candidates = generated(
        catalogue, visitor(catalogue, *entries), windows(a=2, e=7), tower_hits=tower, per_source=per_source,
        allowed=ItemSet.from_mask(np.array(allowed)), user_vector=catalogue.vectors[3],
    )  # fmt: skip
    assert np.isfinite(candidates.features).all()
    assert len(set(candidates.items.tolist())) == len(candidates.items)
    assert all(allowed[item] for item in candidates.items)
    assert (candidates.ranks.min(axis=1, initial=UNRANKED) < UNRANKED).all()
