"""Filters over the items of a release: an expression becomes the set of items that it holds for, once."""

import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from apps.http.errors import Problem
from apps.recommend.filters.language import All, Any_, Compare, Contains, FilterError, In, Node, Not, parse
from features.recommender.catalogue import ItemSet

Mask = NDArray[np.bool_]
MAX_CACHED = 256
"""Latest expressions whose items are remembered."""
ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class ItemColumns:
    """What filters read of N items; the texts become Arrow columns when the first filter asks for them."""

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
        """An Arrow array of strings; categories as a dictionary, for they are few."""
        if field not in self._arrays:
            array = pa.array(self._texts[field], pa.string())
            self._arrays[field] = array.dictionary_encode() if field == "category" else array
        return self._arrays[field]


def mask_of(node: Node, items: ItemColumns) -> Mask:
    """Which items the expression holds for, shape [N]."""
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
            wanted = pa.array([str(value) for value in values], pa.string())
            return _bools(_over(items.text(field), lambda texts: pc.is_in(texts, wanted)))
        case Contains(field, text):
            return _bools(_over(items.text(field), lambda texts: pc.match_substring(texts, text, ignore_case=True)))


def _over(texts: Any, test: Callable[[Any], Any]) -> Any:
    """The test of every text; of a dictionary, each entry is tested once."""
    if isinstance(texts, pa.DictionaryArray):
        return test(texts.dictionary).take(texts.indices)
    return test(texts)


def _bools(array: Any) -> Mask:
    found: Mask = array.to_numpy(zero_copy_only=False).astype(bool)
    return found


def parsed(text: str, *, where: str = "filter") -> Node:
    """Raises Problem 422 that points at the character."""
    try:
        return parse(text)
    except FilterError as error:
        raise Problem(422, "Invalid filter", f"{where}: {error}") from error


class ItemFilters:
    """The items of one release by expression. Safe to use from threads."""

    def __init__(self, items: ItemColumns) -> None:
        self.items = items
        self._known: OrderedDict[str, ItemSet] = OrderedDict()
        self._lock = threading.Lock()

    def allowed(self, expression: str | None) -> ItemSet | None:
        """The items that the expression holds for; None without one. Raises Problem 422."""
        if not expression or not expression.strip():
            return None
        with self._lock:
            known = self._known.get(expression)
            if known is not None:
                self._known.move_to_end(expression)
                return known
        try:
            made = ItemSet.from_mask(mask_of(parsed(expression), self.items))
        except RecursionError:
            raise Problem(422, "Invalid filter", "filter: it is nested too deeply; write it flatter") from None
        with self._lock:
            self._known[expression] = made
            if len(self._known) > MAX_CACHED:
                self._known.popitem(last=False)
        return made
