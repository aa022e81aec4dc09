"""Holds the candidates of one request with the items behind them, for re-ranking and for the answer.

What takes time and few requests need (rows that an expression holds for, values of a field, vectors) is computed when
its method is called. Knows nothing of visitors or rules.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.recommend.cold_items import ColdItems
from apps.recommend.filters.evaluation import ItemFilters
from apps.recommend.reasons import first_sources
from features.recommender.candidates import Candidates
from features.recommender.catalogue import Catalogue

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """C candidates as rows. An index below the catalogue's size is an item of the release, and those of cold items
    follow from there. Candidates of the catalogue come first."""

    candidates: Candidates
    catalogue: Catalogue
    filters: ItemFilters
    """Of the catalogue's items."""
    cold_items: ColdItems
    catalogue_rows: int
    """How many candidates are of the catalogue."""

    def describe(self, rows: Rows) -> list[tuple[str, str, float, str]]:
        """Returns (id, title, price, category) of rows."""
        catalogue, items = self.catalogue, self.candidates.items[rows]
        ids, titles, categories, count = catalogue.ids, catalogue.titles, catalogue.categories, len(catalogue.ids)
        catalogue_prices = catalogue.prices[np.minimum(items, count - 1)] if count else np.zeros(len(items))
        prices: list[float] = catalogue_prices.astype(np.float64).round(2).tolist()
        described = []
        for item, price in zip(items.tolist(), prices, strict=True):
            if item < count:
                described.append((ids[item], titles[item], price, categories[item] if categories else ""))
            else:
                listed = self.cold_items.items[item - count]
                described.append((listed.item_id, listed.title, round(listed.price, 2), listed.category))
        return described

    def values_of(self, field: str, rows: Rows) -> list[str]:
        """Returns the values of `source` or `category` of rows."""
        if field == "source":
            return first_sources(self.candidates.ranks[rows])
        items, count = self.candidates.items[rows], len(self.catalogue.ids)
        categories, cold_categories = self.filters.items.categories, self.cold_items.filters.items.categories
        return [categories[item] if item < count else cold_categories[item - count] for item in items.tolist()]

    def row_of(self, item_id: str) -> int | None:
        """Returns the row of an item of the catalogue; None where it is no candidate."""
        rows = np.flatnonzero(self.candidates.items == self.catalogue.index.get(item_id, -1))
        return int(rows[0]) if len(rows) else None

    def vectors(self, rows: Rows) -> NDArray[np.float32]:
        """Returns the unit vectors of rows, shape [len(rows), D]."""
        items, count = self.candidates.items[rows], len(self.catalogue.ids)
        if self.catalogue_rows == len(self.candidates.items):
            return self.catalogue.vectors[items]
        cold = items >= count
        vectors = np.empty((len(rows), self.cold_items.vectors.shape[1]), dtype=np.float32)
        vectors[~cold] = self.catalogue.vectors[items[~cold]]
        vectors[cold] = self.cold_items.vectors[items[cold] - count]
        return vectors

    def matches(self, expression: str) -> NDArray[np.bool_]:
        """Says which rows an expression holds for, shape [C]. Raises Problem 422."""
        items, split = self.candidates.items, self.catalogue_rows
        allowed = self.filters.allowed(expression)
        if allowed is None:
            return np.ones(len(items), dtype=bool)
        holds = allowed.contains(items[:split])
        cold = self.cold_items.filters.allowed(expression) if split < len(items) else None
        if cold is None:
            return holds
        return np.concatenate((holds, cold.contains(items[split:] - len(self.catalogue.ids))))

    @property
    def ranker_items(self) -> NDArray[np.int64]:
        """The catalogue indices that the ranker reads, shape [C]: a cold item has that of the item most like it."""
        items, split = self.candidates.items, self.catalogue_rows
        if split == len(items):
            return items
        cold = items[split:] - len(self.catalogue.ids)
        return np.concatenate((items[:split], self.cold_items.nearest_known[cold]))
