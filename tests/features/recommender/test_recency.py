"""What a visitor did last: which entries count, how much, and as which rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.recommender import recency
from features.recommender.recency import VISIT_GAP_MS

STEPS = st.lists(
    st.tuples(st.integers(-1, 40), st.integers(0, 3), st.sampled_from([0, 1, VISIT_GAP_MS, VISIT_GAP_MS + 1]))
)
"""Items, kinds, and ms since the entry before."""


@given(STEPS, st.integers(1, 12))
def test_each_visit_before_the_last_counts_half_as_much(steps: list[tuple[int, int, int]], most: int) -> None:
    items, kinds, gaps = (np.array([step[part] for step in steps], dtype=np.int64) for part in range(3))
    times, returned = np.cumsum(gaps), 3
    kept = np.flatnonzero((items >= 0) & (kinds != returned))[-most:]
    visits = np.concatenate(([0], np.cumsum(np.diff(times[kept]) > VISIT_GAP_MS)))[: len(kept)]
    expected = 0.5 ** (visits[-1:].sum() - visits)
    latest, weights = recency.latest_items(items, kinds, times, returned, most)
    assert latest.tolist() == items[kept].tolist()
    assert weights.tolist() == expected.tolist()


@given(st.lists(st.sampled_from([1.0, 0.5, 0.25]), max_size=8))
def test_rows_are_filled_up_and_weights_sum_to_one(weights: list[float]) -> None:
    items: NDArray[np.int64] = np.arange(1, len(weights) + 1)
    row, shares = recency.pad_row(items, np.array(weights, dtype=np.float32), 8)
    assert row.tolist() == items.tolist() + [0] * (8 - len(items))
    np.testing.assert_allclose(shares, np.array(weights + [0] * (8 - len(weights))) / (sum(weights) or 1), rtol=1e-6)
