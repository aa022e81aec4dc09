"""Tests the ranking metrics against values computed by hand, and their properties on random lists."""

from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.core.ranking_metrics import hit_rate, ndcg, recall


def metrics(ranked: list[int], targets: list[int], k: int) -> tuple[float, float, float]:
    """Returns NDCG, recall and hit rate at k of one list."""
    hits, relevant = np.isin(ranked, targets)[None], np.array([len(targets)])
    (gain,), (share,), (hit,) = ndcg(hits, relevant, k=k), recall(hits, relevant, k=k), hit_rate(hits, k=k)
    return gain, share, hit


BY_HAND = [
    ([5, 7, 9], [5], 3, (1, 1, 1)),
    ([5, 7, 9], [9], 3, (1 / log2(4), 1, 1)),
    ([5, 7, 9], [9], 2, (0, 0, 0)),
    ([5, 7, 9, 4], [7, 4], 4, ((1 / log2(3) + 1 / log2(5)) / (1 + 1 / log2(3)), 1, 1)),
    ([5, 7], [7, 1, 2, 3], 2, (1 / log2(3) / (1 + 1 / log2(3)), 0.5, 1)),  # only two positions for four items
    ([5], [5, 6], 10, (1 / (1 + 1 / log2(3)), 0.5, 1)),  # a list shorter than k
    ([], [5], 10, (0, 0, 0)),
    ([5, 7], [], 2, (0, 0, 0)),  # nothing is relevant
]


@pytest.mark.parametrize(("ranked", "targets", "k", "expected"), BY_HAND)
def test_metrics_equal_values_computed_by_hand(
    ranked: list[int], targets: list[int], k: int, expected: tuple[float, float, float]
) -> None:
    assert metrics(ranked, targets, k) == pytest.approx(expected)


def test_many_lists_get_the_values_of_each_alone() -> None:
    hits = np.array([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    relevant = np.array([2, 3, 1])
    for metric in (ndcg, recall):
        rows = [metric(hits[row : row + 1], relevant[row : row + 1], k=3)[0] for row in range(3)]
        assert metric(hits, relevant, k=3).tolist() == rows
    assert hit_rate(hits, k=3).tolist() == [1, 1, 0]


UNIQUE = st.lists(st.integers(0, 30), min_size=1, max_size=20, unique=True)


@given(UNIQUE, UNIQUE, st.integers(1, 25))
def test_metrics_are_between_0_and_1_and_1_for_a_perfect_list(ranked: list[int], targets: list[int], k: int) -> None:
    assert all(0 <= value <= 1 + 1e-12 for value in metrics(ranked, targets, k))
    perfect = targets + [item for item in ranked if item not in targets]
    assert metrics(perfect, targets, k) == pytest.approx((1, 1, 1))
    assert metrics([item + 100 for item in ranked], targets, k) == (0, 0, 0)


@given(UNIQUE, UNIQUE, st.integers(1, 25), st.data())
def test_moving_a_hit_up_never_lowers_ndcg(ranked: list[int], targets: list[int], k: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(ranked) - 1))
    moved = [ranked[position], *ranked[:position], *ranked[position + 1 :]]
    if ranked[position] in targets:
        assert metrics(moved, targets, k)[0] >= metrics(ranked, targets, k)[0] - 1e-12
