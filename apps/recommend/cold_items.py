"""Items that were listed after the release was made: recommended through items like them, without retraining.

An item that no model has seen gets the mean vector of the catalogue's items that share words, category and price with
it, and the ranker reads the embedding of the item most like it. Its index is the catalogue's size and up.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from apps.ports import ListedItem
from apps.recommend.filters.evaluation import ItemColumns, ItemFilters
from features.recommender.candidates import (
    CANDIDATE_FEATURES,
    FEATURE_INDEX,
    NEVER_DAYS,
    SOURCES,
    UNRANKED,
    USER_FEATURES,
    Candidates,
    Visitor,
    user_features,
)
from features.recommender.catalogue import Catalogue

MAX_COLD_ITEMS = 200
"""Latest listings that can be recommended; older ones wait for the next release."""
NEIGHBOURS_AVERAGED = 10
"""Catalogue items whose vectors are averaged for a cold item."""
WORD = re.compile(r"\w{3,}")
SAME_CATEGORY, PER_DOUBLED_PRICE = 3.0, -0.7
"""Added to the similarity, as is the inverse document frequency of each shared word."""


@dataclass(frozen=True)
class ColdItems:
    """M cold items as arrays."""

    items: tuple[ListedItem, ...]
    vectors: NDArray[np.float32]
    """Shape [M, D], unit length, or zero where nothing in the catalogue is like it."""
    nearest_known: NDArray[np.int64]
    """Shape [M], catalogue indices."""
    filters: ItemFilters


def match_cold_items(
    listed: Sequence[ListedItem], catalogue: Catalogue, columns: ItemColumns, *, previous: ColdItems | None
) -> ColdItems:
    """Returns the latest MAX_COLD_ITEMS of `listed` that the catalogue lacks.

    columns: of the catalogue's items; previous: what was matched before, so that only other items are matched again.
    """
    cold = {item.item_id: item for item in listed if item.item_id not in catalogue.index}
    items = tuple(list(cold.values())[-MAX_COLD_ITEMS:])
    previous_rows = {} if previous is None else {item: row for row, item in enumerate(previous.items)}
    vectors = np.zeros((len(items), catalogue.vectors.shape[1]), dtype=np.float32)
    nearest = np.zeros(len(items), dtype=np.int64)
    for row, item in enumerate(items):
        if previous is not None and item in previous_rows:
            previous_row = previous_rows[item]
            vectors[row], nearest[row] = previous.vectors[previous_row], previous.nearest_known[previous_row]
        elif len(catalogue.ids):
            neighbours = _most_similar(item, columns)
            mean = catalogue.vectors[neighbours].sum(axis=0)
            vectors[row] = mean / max(float(np.linalg.norm(mean)), 1e-9)
            nearest[row] = neighbours[0]
    cold_columns = ItemColumns(
        [item.item_id for item in items],
        [item.title for item in items],
        np.array([item.price for item in items], dtype=np.float32),
        [item.category for item in items],
    )
    return ColdItems(items, vectors, nearest, ItemFilters(cold_columns))


def _most_similar(item: ListedItem, columns: ItemColumns) -> NDArray[np.int64]:
    """Returns the NEIGHBOURS_AVERAGED catalogue items most similar to it by words, category and price, best first."""
    count = len(columns)
    score = np.zeros(count)
    for word in sorted(set(WORD.findall(item.title.lower())))[:12]:
        has = pc.match_substring(columns.text("title"), word, ignore_case=True).to_numpy(zero_copy_only=False)
        score += has * np.log((1 + count) / (1 + has.sum()))
    if item.category:
        same = pc.equal(columns.text("category").cast("string"), item.category)
        score += SAME_CATEGORY * same.to_numpy(zero_copy_only=False)
    if item.price > 0:
        priced = columns.prices > 0
        ratio = np.log2(np.where(priced, columns.prices, item.price) / item.price)
        score += PER_DOUBLED_PRICE * np.abs(ratio)
    return np.argsort(-score, kind="stable")[:NEIGHBOURS_AVERAGED].astype(np.int64)


def select_cold_items(
    cold_items: ColdItems, expression: str | None, user_vector: NDArray[np.float32], *, excluded: set[str], most: int
) -> NDArray[np.int64]:
    """Returns rows of at most `most` cold items: those nearest to the visitor, or the latest for a stranger, whose
    vector is zero. Raises Problem 422 for an expression that is not valid."""
    if not cold_items.items or not most:
        return np.empty(0, dtype=np.int64)
    rows = np.arange(len(cold_items.items))
    allowed = cold_items.filters.allowed(expression)
    if allowed is not None:
        rows = rows[allowed.contains(rows)]
    if excluded:
        rows = rows[[cold_items.items[row].item_id not in excluded for row in rows.tolist()]]
    nearness = cold_items.vectors[rows] @ user_vector if user_vector.any() else rows
    return rows[np.argsort(-nearness, kind="stable")][:most]


def append_cold_items(
    candidates: Candidates,
    cold_items: ColdItems,
    rows: NDArray[np.int64],
    *,
    visitor: Visitor,
    first_index: int,
    user_vector: NDArray[np.float32],
) -> Candidates:
    """Returns the candidates followed by the cold items at `rows`, whose features come from content and the visitor.

    first_index: index of the first cold item, the size of the catalogue.
    """
    if not len(rows):
        return candidates
    features = np.zeros((len(rows), len(CANDIDATE_FEATURES)), dtype=np.float32)
    prices = cold_items.filters.items.prices[rows]
    user = user_features(visitor)
    mean_price = user[USER_FEATURES.index("user_mean_price")]
    features[:, FEATURE_INDEX["tower_score"]] = cold_items.vectors[rows] @ user_vector
    features[:, FEATURE_INDEX["own_idle_days"]] = NEVER_DAYS
    features[:, FEATURE_INDEX["item_trend"]] = 1.0
    features[:, FEATURE_INDEX["item_price"]] = prices
    features[:, FEATURE_INDEX["price_ratio"]] = np.log((prices + 0.1) / (mean_price + 0.1)) if mean_price > 0 else 0.0
    features[:, FEATURE_INDEX[USER_FEATURES[0]] :] = user
    return Candidates(
        np.concatenate((candidates.items, first_index + rows)),
        np.concatenate((candidates.ranks, np.full((len(rows), len(SOURCES)), UNRANKED, dtype=np.int64))),
        np.concatenate((candidates.features, features)),
        np.concatenate((candidates.seed_items, np.full(len(rows), -1, dtype=np.int64))),
    )
