"""Loops are machine code from import on, kept on disk where that can be, else compiled for one process."""

from typing import Any

import numba
import numpy as np
import pytest

from features.recommender import candidate_kernels, diversity, recency
from features.recommender.compiled import INT64S, compiled


def total(values: np.ndarray, start: int) -> int:
    for value in values:
        start += value
    return start


def test_what_is_compiled_takes_arrays_that_cannot_be_written_and_no_other_type() -> None:
    quick = compiled(INT64S, numba.int64)(total)
    values = np.arange(5)
    assert quick(values, 1) == 11
    values.flags.writeable = False
    assert quick(values, 1) == 11
    with pytest.raises(TypeError):
        quick(values.astype(np.float64), 1)


def test_without_a_folder_to_write_to_each_process_compiles_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    real = numba.njit

    def refusing(*arguments: object, cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(*arguments, **options)

    monkeypatch.setattr(numba, "njit", refusing)
    assert compiled(INT64S, numba.int64)(total)(np.arange(5), 1) == 11


CALLED = [
    recency.latest_items, recency.pad_row, candidate_kernels.generate_candidates, candidate_kernels.user_features,
    candidate_kernels.are_allowed, candidate_kernels.isin, candidate_kernels.interacted_since,
    candidate_kernels.count_occurrences, diversity.mmr_order,
]  # fmt: skip


@pytest.mark.parametrize("function", CALLED, ids=lambda function: function.__name__)
def test_the_first_request_compiles_nothing(function: Any) -> None:
    assert len(function.signatures) == 1
    assert not function._can_compile
