"""Tests metrics against their definitions, and the items of ranked lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.benchmark.interactions import Sequences
from training.benchmark.lists import NO_ITEM, mask, top_lists
from training.benchmark.metrics import bootstrap_intervals, case_metrics, measure
from training.benchmark.protocols import Cases
from training.core.ranking_metrics import hit_rate, ndcg, recall

ITEMS = 12


def sequences(rows: list[list[int]]) -> Sequences:
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    flat = np.array([item for row in rows for item in row], dtype=np.int64)
    return Sequences(offsets, flat, np.arange(len(flat)))


item_sets = st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=6, unique=True)


@given(st.lists(st.tuples(item_sets, item_sets), min_size=1, max_size=5), st.integers(1, 8))
def test_each_case_gets_the_metrics_of_its_list_alone(
    lists_and_targets: list[tuple[list[int], list[int]]], k: int
) -> None:
    lists = np.full((len(lists_and_targets), 8), NO_ITEM, dtype=np.int64)
    for row, (shown, _) in enumerate(lists_and_targets):
        lists[row, : len(shown)] = shown
    inputs, targets = sequences([[0]] * len(lists)), sequences([targets for _, targets in lists_and_targets])
    metrics = case_metrics(lists, Cases(inputs, targets, np.arange(len(lists))), ks=(k,), items=ITEMS)
    for row, (shown, relevant) in enumerate(lists_and_targets):
        hits, count = np.isin(shown, relevant)[None], np.array([len(relevant)])
        assert metrics[f"ndcg@{k}"][row] == pytest.approx(ndcg(hits, count, k=k)[0])
        assert metrics[f"recall@{k}"][row] == pytest.approx(recall(hits, count, k=k)[0])
        assert metrics[f"hr@{k}"][row] == hit_rate(hits, k=k)[0]
        positions = [1 + shown.index(item) for item in relevant if item in shown]
        assert metrics["mrr"][row] == pytest.approx(1 / min(positions) if positions else 0)


def test_lists_are_described_by_coverage_novelty_and_popularity() -> None:
    learnt = sequences([[0, 1], [0], [0, 0], [2]])
    cases = Cases(sequences([[0], [2]]), sequences([[1], [1]]), np.array([0, 3]))
    measurement = measure(np.array([[0, 1], [0, NO_ITEM]]), cases, learnt=learnt, items=4, ks=(2,), seed=1)
    assert measurement.values["coverage@2"] == 0.5
    assert measurement.values["novelty@2"] == pytest.approx(-(2 * np.log2(3 / 4) + np.log2(1 / 4)) / 3)
    assert measurement.values["popularity_bias@2"] == pytest.approx((3 + 1 + 3) / 3 / 2)


def test_the_interval_contains_the_mean_about_95_times_in_100() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for seed in range(200):
        low, high = bootstrap_intervals({"hr": (rng.random(150) < 0.3).astype(float)}, seed=seed)["hr"]
        inside += low <= 0.3 <= high
    assert 180 <= inside <= 198


@given(st.lists(st.floats(0, 1, width=32), min_size=ITEMS, max_size=ITEMS), item_sets)
def test_a_list_holds_the_best_items_without_the_masked_ones(values: list[float], taken: list[int]) -> None:
    scores = np.array([values], dtype=np.float32)
    mask(scores, sequences([taken]))
    lists = top_lists(scores, depth=ITEMS)
    expected = sorted((item for item in range(ITEMS) if item not in taken), key=lambda item: -values[item])
    assert lists[0].tolist() == expected + [NO_ITEM] * len(taken)
