"""Compiles plain loops to machine code with Numba, for the few functions that every request calls.

Argument types are given, so that everything is compiled at import and nothing at the first request. The machine code is
cached on disk, in `__pycache__` or, where that cannot be written, in the user's cache folder. Numba compiles a function
again only when its own file changes: what comes from other files must be an argument, neither a global nor a callee.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba import types

Function = TypeVar("Function", bound=Callable[..., Any])


def array(dtype: Any, dimensions: int = 1) -> Any:
    """Returns the type of a read-only array in C order, such as the mapped files of a release."""
    return types.Array(dtype, dimensions, "C", readonly=True)


INT64S, FLOAT64S = array(types.int64), array(types.float64)
FLOAT32S, UINT8S = array(types.float32), array(types.uint8)


def compiled(*arguments: Any, any_order: bool = False) -> Callable[[Function], Function]:
    """Compiles for arguments of these types; without types, for those of each caller, as inner functions are.

    any_order: allows sums in any order, and so several numbers at a time.
    """
    signatures = [arguments] if arguments else None
    options: dict[str, Any] = {"fastmath": {"reassoc", "contract"}} if any_order else {}

    def make(function: Function) -> Function:
        try:
            return cast(Function, numba.njit(signatures, cache=True, **options)(function))
        except RuntimeError:  # no folder is writable: each process compiles for itself
            return cast(Function, numba.njit(signatures, **options)(function))

    return make
