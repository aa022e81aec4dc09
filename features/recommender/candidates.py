"""Generates the candidates of a request from several sources and computes the features that the ranker reads.

Serving, ranker training and the gate all call `generate_candidates`, so that the ranker reads in serving what it was
trained on. Knows neither models nor stores: the hits of the vector search are an argument.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from features.contract import columns
from features.history.arrays import History
from features.recommender import candidate_kernels, recency
from features.recommender.candidate_kernels import CANDIDATE_FEATURES as CANDIDATE_FEATURES
from features.recommender.candidate_kernels import NEVER_DAYS as NEVER_DAYS
from features.recommender.candidate_kernels import SOURCES as SOURCES
from features.recommender.candidate_kernels import UNRANKED as UNRANKED
from features.recommender.candidate_kernels import USER_FEATURES as USER_FEATURES
from features.recommender.catalogue import Catalogue, ItemSet, PopularItems, popular_items

RECENT_ITEMS = 50
"""Number of items that the user tower and co-purchase read."""

BASELINES = {"popularity": "item_orders_30d", "co_purchase": "co_score", "repurchase": "own_score"}
"""Rankings without a model: each orders the candidates by a feature."""

FEATURE_INDEX = {name: column for column, name in enumerate(CANDIDATE_FEATURES)}
"""The column of each among Candidates.features."""
_ALL_ALLOWED = np.empty(0, dtype=np.uint8)
"""No bits: every item is allowed."""
_PURCHASE, _RETURN, _CART = (columns.EVENT_TYPE_CODES[name] for name in ("purchase", "return", "cart"))


@dataclass(frozen=True)
class Visitor:
    """The history of a user or session at a moment, as arrays over entries, oldest first."""

    at: int
    """The moment of the request, ms."""
    items: NDArray[np.int64]
    """Catalogue indices, -1 for unknown items."""
    times: NDArray[np.int64]
    event_types: NDArray[np.int64]
    prices: NDArray[np.float64]
    quantities: NDArray[np.float64]

    @cached_property
    def _latest(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return recency.latest_items(self.items, self.event_types, self.times, _RETURN, RECENT_ITEMS)

    @property
    def recent_items(self) -> NDArray[np.int64]:
        """The latest RECENT_ITEMS items, oldest first, without returned and unknown ones."""
        return self._latest[0]

    @property
    def recency_weights(self) -> NDArray[np.float32]:
        """Weight of each of `recent_items`: 1 in the last visit, halved for each visit before it."""
        return self._latest[1]


def padded_histories(visitors: list[Visitor]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the inputs of the user tower: items int64 [B, RECENT_ITEMS] and weights float32, each row summing to 1 or
    0."""
    items = np.empty((len(visitors), RECENT_ITEMS), dtype=np.int64)
    weights = np.empty((len(visitors), RECENT_ITEMS), dtype=np.float32)
    for row, visitor in enumerate(visitors):
        items[row], weights[row] = recency.pad_row(visitor.recent_items, visitor.recency_weights, RECENT_ITEMS)
    return items, weights


def build_visitor(
    history: History, catalogue: Catalogue, *, at: int, session_items: list[str] | None = None
) -> Visitor:
    """Builds the visitor of a one-row history of arrays.USER_COLUMNS; entries after `at` (ms) are ignored.

    session_items: items viewed in this session, oldest first, which the history may not hold yet.
    """
    indices = catalogue.indices(history.entries[columns.ITEMS])
    visitor = visitor_from_indices(History(history.offsets, history.entries | {columns.ITEMS: indices}), at=at)
    if not session_items:
        return visitor
    viewed = catalogue.indices(session_items)
    count = len(viewed)
    prices = np.where(viewed >= 0, catalogue.prices[viewed], 0.0) if len(catalogue.ids) else np.zeros(count)
    return Visitor(
        at,
        np.concatenate((visitor.items, viewed)),
        np.concatenate((visitor.times, np.full(count, at, dtype=np.int64))),
        np.concatenate((visitor.event_types, np.full(count, columns.EVENT_TYPE_CODES["view"], dtype=np.int64))),
        np.concatenate((visitor.prices, prices)),
        np.concatenate((visitor.quantities, np.ones(count))),
    )


def visitor_from_indices(history: History, *, at: int) -> Visitor:
    """Builds the visitor of a history whose items are catalogue indices already."""
    entries = history.entries
    if len(history.times) and history.times[-1] > at:
        past = history.times <= at
        entries = {name: column[past] for name, column in entries.items()}
    return Visitor(
        at, entries[columns.ITEMS], entries[columns.TIMES], entries[columns.EVENT_TYPES], entries[columns.PRICES],
        entries[columns.QUANTITIES],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Candidates:
    """The C candidates of a request."""

    items: NDArray[np.int64]
    """Shape [C], catalogue indices, each once."""
    ranks: NDArray[np.int64]
    """Shape [C, len(SOURCES)]: rank in each source from 0 on, UNRANKED where it lacks the item."""
    features: NDArray[np.float32]
    """Shape [C, len(CANDIDATE_FEATURES)]."""
    seed_items: NDArray[np.int64]
    """Shape [C]: the recent item that speaks most for this one by co-purchase, -1 for none."""

    def column(self, name: str) -> NDArray[np.float32]:
        """Returns a feature of all candidates, shape [C]."""
        return self.features[:, FEATURE_INDEX[name]]

    def filter(self, mask: NDArray[np.bool_]) -> "Candidates":
        """Returns the candidates where `mask` (shape [C]) holds."""
        return Candidates(self.items[mask], self.ranks[mask], self.features[mask], self.seed_items[mask])


def generate_candidates(
    visitor: Visitor,
    catalogue: Catalogue,
    windows: NDArray[np.float32],
    *,
    tower_hits: NDArray[np.int64],
    user_vector: NDArray[np.float32],
    per_source: int,
    quotas: tuple[int, ...] | None = None,
    allowed: ItemSet | None = None,
    popular: PopularItems | None = None,
) -> Candidates:
    """Generates at most `per_source` candidates from each source, or `quotas` in the order of SOURCES, with features.

    windows: item_windows of the catalogue at visitor.at; tower_hits: catalogue indices, nearest first; user_vector:
    shape [D], zeros when there is none; allowed: which items may be shown (None: all); popular:
    popular_items(windows), where that is computed already.
    """
    best_sellers = popular or popular_items(windows)
    return Candidates(
        *candidate_kernels.generate_candidates(
            visitor.at, visitor.items, visitor.times, visitor.event_types, visitor.prices, visitor.quantities,
            visitor.recent_items, visitor.recency_weights, tower_hits, best_sellers.last_7_days,
            best_sellers.last_30_days, np.array(quotas or (per_source,) * len(SOURCES)),
            allowed.bits if allowed is not None else _ALL_ALLOWED, catalogue.neighbours, catalogue.similarities,
            catalogue.vectors, user_vector, catalogue.prices, windows, _PURCHASE, _RETURN, _CART,
        )
    )  # fmt: skip


def baseline_order(candidates: Candidates, baseline: str) -> NDArray[np.int64]:
    """Returns the rows of the candidates, best first by a baseline's feature; equals go by the orders of 30 days."""
    return np.lexsort((-candidates.column("item_orders_30d"), -candidates.column(BASELINES[baseline])))


def user_features(visitor: Visitor) -> NDArray[np.float32]:
    """Computes USER_FEATURES, shape [len(USER_FEATURES)]."""
    return candidate_kernels.user_features(
        visitor.at, visitor.items, visitor.times, visitor.event_types, visitor.prices, visitor.quantities, _PURCHASE
    )
