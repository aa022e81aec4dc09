"""Items that were listed after the release was made: shown through items like them, without retraining.

An item that no model has seen borrows the mean vector of the catalogue's items that share words, category and price
with it, and the ranker's embedding of the likest one. Its index is the catalogue's size and up.
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
    SOURCES,
    UNRANKED,
    USER_FEATURES,
    Candidates,
    Visitor,
)
from features.recommender.candidates import NEVER_DAYS as NEVER
from features.recommender.candidates import user_features as describe_user
from features.recommender.catalogue import Catalogue

MAX_COLD_ITEMS = 200
"""Latest ones that are shown; older ones wait for the next release."""
NEIGHBOURS_AVERAGED = 10
WORD = re.compile(r"\w{3,}")
SAME_CATEGORY, PER_DOUBLED_PRICE = 3.0, -0.7
"""Weights beside those of shared words, which are their inverse document frequencies."""


@dataclass(frozen=True)
class ColdItems:
    items: tuple[ListedItem, ...]
    vectors: NDArray[np.float32]
    """Shape [M, D], unit length, or zero where nothing in the catalogue is like it."""
    nearest_known: NDArray[np.int64]
    """Shape [M], catalogue indices."""
    filters: ItemFilters


def match_cold_items(
    listed: Sequence[ListedItem], catalogue: Catalogue, columns: ItemColumns, *, known: ColdItems | None
) -> ColdItems:
    """The latest MOST of `listed` that the catalogue lacks; what `known` says of an item is not worked out again."""
    fresh = {item.item_id: item for item in listed if item.item_id not in catalogue.index}
    items = tuple(list(fresh.values())[-MAX_COLD_ITEMS:])
    before = {} if known is None else {item: place for place, item in enumerate(known.items)}
    vectors = np.zeros((len(items), catalogue.vectors.shape[1]), dtype=np.float32)
    likest = np.zeros(len(items), dtype=np.int64)
    for place, item in enumerate(items):
        if known is not None and item in before:
            vectors[place], likest[place] = known.vectors[before[item]], known.nearest_known[before[item]]
        elif len(catalogue.ids):
            alike = _alike(item, columns)
            mean = catalogue.vectors[alike].sum(axis=0)
            vectors[place] = mean / max(float(np.linalg.norm(mean)), 1e-9)
            likest[place] = alike[0]
    shown = ItemColumns(
        [item.item_id for item in items],
        [item.title for item in items],
        np.array([item.price for item in items], dtype=np.float32),
        [item.category for item in items],
    )
    return ColdItems(items, vectors, likest, ItemFilters(shown))


def _alike(item: ListedItem, columns: ItemColumns) -> NDArray[np.int64]:
    """The ALIKE catalogue items most like it, the likest first."""
    count = len(columns)
    score = np.zeros(count)
    for word in sorted(set(WORD.findall(item.title.lower())))[:12]:
        has = pc.match_substring(columns.text("title"), word, ignore_case=True).to_numpy(zero_copy_only=False)
        score += has * np.log((1 + count) / (1 + has.sum()))
    if item.category:
        same = pc.equal(columns.text("category").cast("string"), item.category)
        score += SAME_CATEGORY * same.to_numpy(zero_copy_only=False)
    if item.price > 0:
        known = columns.prices > 0
        ratio = np.log2(np.where(known, columns.prices, item.price) / item.price)
        score += PER_DOUBLED_PRICE * np.abs(ratio)
    return np.argsort(-score, kind="stable")[:NEIGHBOURS_AVERAGED].astype(np.int64)


def append_cold_items(
    candidates: Candidates,
    newcomers: ColdItems,
    places: NDArray[np.int64],
    *,
    who: Visitor,
    first_index: int,
    user_vector: NDArray[np.float32],
) -> Candidates:
    """The candidates and, behind them, the newcomers at `places`; nothing but content and the visitor is known of them.

    first_index: index of the first newcomer, the size of the catalogue.
    """
    if not len(places):
        return candidates
    features = np.zeros((len(places), len(CANDIDATE_FEATURES)), dtype=np.float32)
    prices = newcomers.filters.items.prices[places]
    user = describe_user(who)
    mean_price = user[USER_FEATURES.index("user_mean_price")]
    features[:, FEATURE_INDEX["tower_score"]] = newcomers.vectors[places] @ user_vector
    features[:, FEATURE_INDEX["own_idle_days"]] = NEVER
    features[:, FEATURE_INDEX["item_trend"]] = 1.0
    features[:, FEATURE_INDEX["item_price"]] = prices
    features[:, FEATURE_INDEX["price_ratio"]] = np.log((prices + 0.1) / (mean_price + 0.1)) if mean_price > 0 else 0.0
    features[:, FEATURE_INDEX[USER_FEATURES[0]] :] = user
    return Candidates(
        np.concatenate((candidates.items, first_index + places)),
        np.concatenate((candidates.ranks, np.full((len(places), len(SOURCES)), UNRANKED, dtype=np.int64))),
        np.concatenate((candidates.features, features)),
        np.concatenate((candidates.seed_items, np.full(len(places), -1, dtype=np.int64))),
    )


def select_cold_items(
    newcomers: ColdItems, expression: str | None, user_vector: NDArray[np.float32], *, barred: set[str], most: int
) -> NDArray[np.int64]:
    """Places of at most `most` newcomers: those nearest to the visitor; for a stranger the latest."""
    if not newcomers.items or not most:
        return np.empty(0, dtype=np.int64)
    places = np.arange(len(newcomers.items))
    allowed = newcomers.filters.allowed(expression)
    if allowed is not None:
        places = places[allowed.contains(places)]
    if barred:
        places = places[[newcomers.items[place].item_id not in barred for place in places.tolist()]]
    nearness = newcomers.vectors[places] @ user_vector if user_vector.any() else places
    return places[np.argsort(-nearness, kind="stable")][:most]
