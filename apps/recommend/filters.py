"""The filter of a request, as a mask over the catalogue."""

import operator
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.errors import Problem
from apps.recommend.schemas import Condition
from features.catalogue import Catalogue

ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
TEXT_OPS = ("eq", "ne", "in", "contains")


def mask(catalogue: Catalogue, conditions: list[Condition], exclude: Collection[str]) -> NDArray[np.bool_] | None:
    """Which items may be shown, shape [N]; None when all may.

    Raises Problem 422 for a condition that makes no sense, naming it.
    """
    if not conditions and not exclude:
        return None
    allowed = np.ones(len(catalogue.ids), dtype=bool)
    for condition in conditions:
        allowed &= _holds(catalogue, condition)
    barred = catalogue.indices(list(exclude))
    allowed[barred[barred >= 0]] = False
    return allowed


def _holds(catalogue: Catalogue, condition: Condition) -> NDArray[np.bool_]:
    field, op, value = condition.field, condition.op, condition.value
    if field == "price":
        if op not in ORDER or not isinstance(value, float | int):
            raise _nonsense(condition, "price takes eq, ne, lt, le, gt or ge and a number")
        return np.asarray(ORDER[op](catalogue.prices, np.float32(value)), dtype=bool)
    if op not in TEXT_OPS or isinstance(value, list) != (op == "in") or isinstance(value, float):
        raise _nonsense(condition, f"{field} takes eq, ne or contains and a text, or in and a list of texts")
    texts = catalogue.ids if field == "item_id" else catalogue.titles
    if op == "in":
        wanted = set(value) if isinstance(value, list) else set()
        return np.fromiter((text in wanted for text in texts), dtype=bool, count=len(texts))
    needle = str(value)
    if op == "contains":
        lowered = needle.lower()
        return np.fromiter((lowered in text.lower() for text in texts), dtype=bool, count=len(texts))
    return np.fromiter(((text == needle) == (op == "eq") for text in texts), dtype=bool, count=len(texts))


def _nonsense(condition: Condition, why: str) -> Problem:
    return Problem(422, "Invalid filter", f"filter {condition.model_dump_json()}: {why}")
