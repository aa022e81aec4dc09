"""Counts over sliding windows of histories.

A window of width w at the moment t holds the entries with t - w < time <= t. The Spark job, training and serving all
call these functions, so that their values are equal.
"""

import numpy as np
from numpy.typing import NDArray

from features.history.arrays import Array, History


def in_window(history: History, at: NDArray[np.int64], width: int) -> NDArray[np.bool_]:
    """Returns which entries lie in the window that ends at their row's moment.

    at: int64 milliseconds, shape [rows]; width: milliseconds, above 0. Returns shape [entries].

    >>> import numpy as np
    >>> history = History(np.array([0, 3]), {"times": np.array([10, 20, 30])})
    >>> in_window(history, np.array([30]), 20)
    array([False,  True,  True])
    """
    moment = np.repeat(at, history.lengths)
    return (history.times > moment - width) & (history.times <= moment)


def row_sums(history: History, values: Array) -> NDArray[np.float64]:
    """Sums `values` (shape [entries]) over each row, shape [rows]; 0 for a row without entries.

    >>> import numpy as np
    >>> row_sums(History(np.array([0, 2, 2, 3]), {"times": np.arange(3)}), np.array([1.0, 2.0, 5.0]))
    array([3., 0., 5.])
    """
    return np.bincount(history.row_of_entry, weights=values, minlength=len(history)).astype(np.float64)


def row_maxima(history: History, values: NDArray[np.float64], *, empty: float) -> NDArray[np.float64]:
    """Returns the largest of `values` (shape [entries]) in each row, shape [rows]; `empty` for a row without
    entries."""
    result = np.full(len(history), empty, dtype=np.float64)
    np.maximum.at(result, history.row_of_entry, values)
    return result
