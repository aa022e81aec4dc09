"""The population stability index against its definition, and bins that hold every value."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.contract.drift import BINS, population_stability_index, reference_distribution, reference_distributions

VALUES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200)


@given(VALUES)
def test_bins_hold_every_value_and_their_shares_sum_to_one(values: list[float]) -> None:
    reference = reference_distribution(np.array(values, dtype=np.float32))
    assert len(reference.shares) == len(reference.edges) + 1 <= BINS
    assert sum(reference.shares) == pytest.approx(1)
    assert list(reference.edges) == sorted(set(reference.edges))
    assert all(share > 0 for share in reference.shares)


def test_it_is_the_sum_of_its_definition() -> None:
    then, now = [0.1, 0.2, 0.3, 0.4], np.array([400, 300, 200, 100])
    expected = sum((b - a) * math.log(b / a) for a, b in zip(then, now / 1000, strict=True))
    assert population_stability_index(then, now) == pytest.approx(expected)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=10).filter(lambda counts: sum(counts) > 0))
def test_it_is_never_negative_and_zero_for_the_same_shares(counts: list[int]) -> None:
    now = np.array(counts)
    assert population_stability_index([1 / len(counts)] * len(counts), now) >= 0
    assert population_stability_index((now / now.sum()).tolist(), now) == pytest.approx(0, abs=1e-12)


def test_a_shift_by_a_standard_deviation_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(3)
    reference = reference_distribution(rng.normal(size=50_000).astype(np.float32))

    def measured(values: np.ndarray) -> float:
        edges = np.array(reference.edges, dtype=np.float32)
        counts = np.bincount(np.searchsorted(edges, values.astype(np.float32)), minlength=len(edges) + 1)
        return population_stability_index(reference.shares, counts)

    assert measured(rng.normal(size=2_000)) < 0.02
    assert measured(rng.normal(1.0, size=2_000)) > 0.25


def test_columns_are_named_and_no_rows_say_nothing() -> None:
    matrix = np.arange(20, dtype=np.float32).reshape(10, 2)
    assert set(reference_distributions(matrix, ["a", "b"])) == {"a", "b"}
    assert reference_distributions(matrix[:0], ["a", "b"]) == {}
