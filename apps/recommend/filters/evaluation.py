"""Evaluates filter expressions over the items of a release, each expression once.

Knows the items' columns and nothing of requests or visitors.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from apps.http.errors import Problem
from apps.lru_map import LruMap
from apps.recommend.filters.language import All, Any_, Compare, Contains, FilterError, In, Node, Not, parse
from features.recommender.catalogue import ItemSet

Mask = NDArray[np.bool_]
MAX_CACHED = 256
"""Expressions used last whose sets of items are kept."""
ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class ItemColumns:
    """Holds what filters read of N items. Texts become Arrow columns when the first filter reads them."""

    def __init__(
        self,
        ids: Sequence[str],
        titles: Sequence[str],
        prices: NDArray[np.float32],
        categories: Sequence[str],
    ) -> None:
        self.prices = prices
        self.categories: Sequence[str] = categories or ("",) * len(ids)
        self._texts = {"item_id": ids, "title": titles, "category": self.categories}
        self._arrays: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.prices)

    def text(self, field: str) -> Any:
        """Returns an Arrow array of strings, of categories a dictionary-encoded one, since they are few."""
        if field not in self._arrays:
            array = pa.array(self._texts[field], pa.string())
            self._arrays[field] = array.dictionary_encode() if field == "category" else array
        return self._arrays[field]


def mask_of(node: Node, items: ItemColumns) -> Mask:
    """Returns which items an expression holds for, shape [N]."""
    match node:
        case All(parts):
            return np.asarray(np.logical_and.reduce([mask_of(part, items) for part in parts]), dtype=bool)
        case Any_(parts):
            return np.asarray(np.logical_or.reduce([mask_of(part, items) for part in parts]), dtype=bool)
        case Not(part):
            return ~mask_of(part, items)
        case Compare("price", op, value):
            return np.asarray(ORDERS[op](items.prices, np.float32(value)), dtype=bool)
        case In("price", values):
            return np.isin(items.prices, np.array(values, dtype=np.float32))
        case Compare(field, op, value):
            equal = _bools(_over(items.text(field), lambda texts: pc.equal(texts, str(value))))
            return equal if op == "==" else ~equal
        case In(field, values):
            listed = pa.array([str(value) for value in values], pa.string())
            return _bools(_over(items.text(field), lambda texts: pc.is_in(texts, listed)))
        case Contains(field, text):
            return _bools(_over(items.text(field), lambda texts: pc.match_substring(texts, text, ignore_case=True)))


def _over(texts: Any, test: Callable[[Any], Any]) -> Any:
    """Applies a test to every text; of a dictionary-encoded array it tests each entry once."""
    if isinstance(texts, pa.DictionaryArray):
        return test(texts.dictionary).take(texts.indices)
    return test(texts)


def _bools(array: Any) -> Mask:
    mask: Mask = array.to_numpy(zero_copy_only=False).astype(bool)
    return mask


def parse_filter(text: str) -> Node:
    """Returns the tree of a request's filter. Raises Problem 422, which names the character."""
    try:
        return parse(text)
    except FilterError as error:
        raise Problem(422, "Invalid filter", f"filter: {error}") from error


class ItemFilters:
    """Finds the items of one release for an expression. Safe to use from threads."""

    def __init__(self, items: ItemColumns) -> None:
        self.items = items
        self._by_expression: LruMap[str, ItemSet] = LruMap(MAX_CACHED)

    def allowed(self, expression: str | None) -> ItemSet | None:
        """Returns the items that the expression holds for; None without one. Raises Problem 422."""
        if not expression or not expression.strip():
            return None
        items = self._by_expression.get(expression)
        if items is None:
            try:
                items = ItemSet.from_mask(mask_of(parse_filter(expression), self.items))
            except RecursionError:
                raise Problem(422, "Invalid filter", "filter: it is nested too deeply; write it flatter") from None
            self._by_expression.put(expression, items)
        return items
