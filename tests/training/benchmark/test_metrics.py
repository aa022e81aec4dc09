"""Metrics against their definitions, and lists that hold what they should."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.benchmark.interactions import Sequences
from training.benchmark.lists import NOBODY, mask, top_lists
from training.benchmark.metrics import interval, measure, per_case
from training.benchmark.protocols import Cases
from training.release.gate import list_metrics

ITEMS = 12


def sequences(rows: list[list[int]]) -> Sequences:
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    flat = np.array([item for row in rows for item in row], dtype=np.int64)
    return Sequences(offsets, flat, np.arange(len(flat)))


item_sets = st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=6, unique=True)


@given(st.lists(st.tuples(item_sets, item_sets), min_size=1, max_size=5), st.integers(1, 8))
def test_each_case_is_worth_what_one_list_at_a_time_says(cases: list[tuple[list[int], list[int]]], k: int) -> None:
    lists = np.full((len(cases), 8), NOBODY, dtype=np.int64)
    for row, (shown, _) in enumerate(cases):
        lists[row, : len(shown)] = shown
    asked = Cases(sequences([[0]] * len(cases)), sequences([targets for _, targets in cases]), np.arange(len(cases)))
    rows = per_case(lists, asked, ks=(k,), items=ITEMS)
    for row, (shown, targets) in enumerate(cases):
        ndcg, recall, hit = list_metrics(np.array(shown), np.array(targets), k=k)
        assert rows[f"ndcg@{k}"][row] == pytest.approx(ndcg)
        assert rows[f"recall@{k}"][row] == pytest.approx(recall)
        assert rows[f"hr@{k}"][row] == hit
        places = [1 + shown.index(item) for item in targets if item in shown]
        assert rows["mrr"][row] == pytest.approx(1 / min(places) if places else 0)


def test_the_whole_list_is_told_by_coverage_novelty_and_popularity() -> None:
    learnt = sequences([[0, 1], [0], [0, 0], [2]])
    cases = Cases(sequences([[0], [2]]), sequences([[1], [1]]), np.array([0, 3]))
    measured = measure(np.array([[0, 1], [0, NOBODY]]), cases, learnt=learnt, items=4, ks=(2,), seed=1)
    assert measured.values["coverage@2"] == 0.5
    assert measured.values["novelty@2"] == pytest.approx(-(2 * np.log2(3 / 4) + np.log2(1 / 4)) / 3)
    assert measured.values["popularity_bias@2"] == pytest.approx((3 + 1 + 3) / 3 / 2)


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for seed in range(200):
        low, high = interval({"hr": (rng.random(150) < 0.3).astype(float)}, seed=seed)["hr"]
        inside += low <= 0.3 <= high
    assert 180 <= inside <= 198


@given(st.lists(st.floats(0, 1, width=32), min_size=ITEMS, max_size=ITEMS), item_sets)
def test_a_list_is_the_best_items_without_what_is_masked(values: list[float], taken: list[int]) -> None:
    scores = np.array([values], dtype=np.float32)
    mask(scores, sequences([taken]))
    lists = top_lists(scores, depth=ITEMS)
    expected = sorted((item for item in range(ITEMS) if item not in taken), key=lambda item: -values[item])
    assert lists[0].tolist() == expected + [NOBODY] * len(taken)
