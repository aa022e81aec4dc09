"""The compiled loops do what plain Python says of the same few numbers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.recommender import candidate_kernels, diversity
from features.recommender.candidate_kernels import UNRANKED

ITEMS = st.lists(st.integers(0, 40), max_size=30)
"""Indices of 41 items."""


def numbers(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def bits(allowed: list[int]) -> NDArray[np.uint8]:
    mask = np.zeros(41, dtype=bool)
    mask[allowed] = True
    return np.packbits(mask, bitorder="little")


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([0.0, 0.5, 2.0])), unique_by=lambda pair: pair[0]),
       st.integers(0, 12), ITEMS)  # fmt: skip
def test_the_highest_are_those_that_sorting_puts_first(
    scored: list[tuple[int, float]], count: int, allowed: list[int]
) -> None:
    items, scores = numbers([item for item, _ in scored]), np.array([score for _, score in scored], dtype=np.float64)
    expected = [item for item, _ in sorted(scored, key=lambda pair: (-pair[1], pair[0])) if item in allowed]
    assert candidate_kernels.top_k_allowed(items, scores, count, bits(allowed)).tolist() == expected[:count]


ENTRIES = st.lists(st.tuples(st.integers(-1, 40), st.integers(0, 12), st.integers(0, 3)))


@given(ITEMS, st.integers(0, 12), ITEMS)
def test_the_first_allowed_keep_their_order(items: list[int], count: int, allowed: list[int]) -> None:
    expected = [item for item in items if item in allowed][:count]
    assert candidate_kernels.first_k_allowed(numbers(items), count, bits(allowed)).tolist() == expected
    assert (
        candidate_kernels.first_k_allowed(numbers(items), count, np.empty(0, dtype=np.uint8)).tolist() == items[:count]
    )
    assert candidate_kernels.are_allowed(bits(allowed), numbers(items)).tolist() == [item in allowed for item in items]


@given(ITEMS, st.lists(st.integers(-1, 40), max_size=30))
def test_membership_takes_repeated_and_unknown_items(items: list[int], others: list[int]) -> None:
    assert candidate_kernels.isin(numbers(items), numbers(others)).tolist() == [item in others for item in items]


@given(st.lists(ITEMS, min_size=1, max_size=4))
def test_drawn_items_are_there_once_with_their_places(sources: list[list[int]]) -> None:
    flat = numbers([item for source in sources for item in source])
    ends = np.cumsum([len(source) for source in sources])
    items, ranks = candidate_kernels.merge_sources(flat, np.sort(flat), ends)
    assert items.tolist() == sorted(set(flat.tolist()))
    for column, source in enumerate(sources):
        once = list(dict.fromkeys(source))
        assert ranks[:, column].tolist() == [once.index(item) if item in once else UNRANKED for item in items.tolist()]


@given(ITEMS, st.integers(0, 2**31))
def test_neighbours_add_up_and_the_strongest_pull_is_told(recent: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    neighbours = rng.integers(-1, 41, (41, 4)).astype(np.int32)
    similarities = rng.random((41, 4), dtype=np.float32)
    weights = rng.random(len(recent), dtype=np.float32)
    _, items, total, best, seeds = candidate_kernels.co_purchase_scores(
        numbers(recent), weights, neighbours, similarities
    )
    pulls: dict[int, list[tuple[float, int]]] = {}
    for seed_item, weight in zip(recent, weights, strict=True):
        for item, similarity in zip(neighbours[seed_item].tolist(), similarities[seed_item], strict=True):
            if item >= 0:
                pulls.setdefault(item, []).append((float(similarity * weight), seed_item))
    assert sorted(items.tolist()) == sorted(pulls)
    for item, summed, most, seed_item in zip(items.tolist(), total, best, seeds.tolist(), strict=True):
        assert summed == pytest.approx(sum(pull for pull, _ in pulls[item]), rel=1e-5)
        assert (pytest.approx(float(most)), seed_item) in pulls[item]
        assert most == pytest.approx(max(pull for pull, _ in pulls[item]))


@given(ITEMS, ENTRIES, st.integers(-1, 10), st.integers(-1, 3))
def test_what_a_visitor_met_is_told_by_time_and_kind(
    items: list[int], entries: list[tuple[int, int, int]], since: int, kind: int
) -> None:
    items = list(dict.fromkeys(items))
    others, times, event_types = (numbers([entry[part] for entry in entries]) for part in range(3))
    interacted = {other for other, time, event_type in entries if time > since and kind in (-1, event_type)}
    assert candidate_kernels.interacted_since(numbers(items), others, times, event_types, since, kind).tolist() == [
        item in interacted for item in items
    ]


@given(st.integers(0, 20), st.integers(0, 25), st.floats(0, 1), st.integers(0, 2**31))
def test_variety_is_chosen_one_by_one(pool: int, most: int, weight: float, seed: int) -> None:
    vectors: NDArray[Any] = np.random.default_rng(seed).normal(size=(pool, 3))
    vectors = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).astype(np.float32)
    order = diversity.mmr_order(vectors, weight, most).tolist()
    chosen, rest = order[:most], order[most:]
    assert sorted(order) == list(range(pool))
    assert rest == sorted(rest)
    for turn, row in enumerate(chosen):
        before = vectors[chosen[:turn]].astype(np.float64)

        def value(other: int, before: NDArray[Any] = before) -> float:
            likeness = max([0.0, *(before @ vectors[other]).tolist()])
            return (1 - weight) * (1 - other / pool) - weight * likeness

        assert value(row) >= max(value(other) for other in range(pool) if other not in chosen[:turn]) - 1e-5
