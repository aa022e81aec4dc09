"""Plain loops that run as machine code, by Numba: for the few functions that every request calls.

Types are given, so that all is compiled at import and nothing at the first request; the machine code is kept on disk,
in `__pycache__` or, where that cannot be written, in the user's folder for such things. It is made anew when the file
of a function changes, and only then: what comes from other files must be an argument, not a global.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba import types

Function = TypeVar("Function", bound=Callable[..., Any])


def array(dtype: Any, dimensions: int = 1) -> Any:
    """An array that is read and not written, row by row in memory; the mapped files of a release are such."""
    return types.Array(dtype, dimensions, "C", readonly=True)


INT64S, FLOAT64S = array(types.int64), array(types.float64)
FLOAT32S, UINT8S = array(types.float32), array(types.uint8)


def compiled(*arguments: Any, any_order: bool = False) -> Callable[[Function], Function]:
    """For arguments of these types; those of an inner function, which has none, follow from who calls it.

    any_order: sums may be taken in any order, so several numbers at a time.
    """
    signatures = [arguments] if arguments else None
    options: dict[str, Any] = {"fastmath": {"reassoc", "contract"}} if any_order else {}

    def make(function: Function) -> Function:
        try:
            return cast(Function, numba.njit(signatures, cache=True, **options)(function))
        except RuntimeError:  # no folder can be written to: each process compiles for itself
            return cast(Function, numba.njit(signatures, **options)(function))

    return make
