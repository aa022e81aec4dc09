"""Candidates for one request: drawn from several sources, and described by the features that the ranker reads.

Serving, ranker training and the gate all call `draw`, so that the ranker meets in service what it was trained on.
Knows nothing of models or stores: vector search hits come in as an argument.
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
"""Items that the user tower and co-purchase read."""

BASELINES = {"popularity": "item_orders_30d", "co_purchase": "co_score", "repurchase": "own_score"}
"""Rankings without a model: each orders the candidates by one feature."""

FEATURE_INDEX = {name: place for place, name in enumerate(CANDIDATE_FEATURES)}
"""Place of each among the columns of Candidates.features."""
_ALL_ALLOWED = np.empty(0, dtype=np.uint8)
"""No bits: every item is allowed."""
_PURCHASE, _RETURN, _CART = (columns.EVENT_TYPE_CODES[kind] for kind in ("purchase", "return", "cart"))


@dataclass(frozen=True)
class Visitor:
    """What is known of one user or session at one moment; arrays over entries, oldest first."""

    at: int
    """The moment of the request, ms."""
    items: NDArray[np.int64]
    """Catalogue index, -1 unknown."""
    times: NDArray[np.int64]
    event_types: NDArray[np.int64]
    prices: NDArray[np.float64]
    quantities: NDArray[np.float64]

    @cached_property
    def _latest(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return recency.latest_items(self.items, self.event_types, self.times, _RETURN, RECENT_ITEMS)

    @property
    def recent_items(self) -> NDArray[np.int64]:
        """The latest RECENT_ITEMS items, oldest first; returned ones and unknown ones left out."""
        return self._latest[0]

    @property
    def recency_weights(self) -> NDArray[np.float32]:
        """Weight of each of `recent`: 1 for the last visit, halved for each visit before it."""
        return self._latest[1]


def padded_histories(visitors: list[Visitor]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What the user tower reads: items int64 [B, RECENT_ITEMS] and weights float32, each row summing to 1 or 0."""
    items = np.empty((len(visitors), RECENT_ITEMS), dtype=np.int64)
    weights = np.empty((len(visitors), RECENT_ITEMS), dtype=np.float32)
    for row, who in enumerate(visitors):
        items[row], weights[row] = recency.pad_row(who.recent_items, who.recency_weights, RECENT_ITEMS)
    return items, weights


def build_visitor(
    history: History, catalogue: Catalogue, *, at: int, session_items: list[str] | None = None
) -> Visitor:
    """The visitor of a one-row history of arrays.USER_COLUMNS; later entries are ignored.

    session_items: items looked at in this session, oldest first, which the history may not hold yet.
    """
    known = catalogue.indices(history.entries[columns.ITEMS])
    who = visitor_from_indices(History(history.offsets, history.entries | {columns.ITEMS: known}), at=at)
    if session_items:
        items, times, kinds, prices, quantities = who.items, who.times, who.event_types, who.prices, who.quantities
        seen = catalogue.indices(session_items)
        items = np.concatenate((items, seen))
        times = np.concatenate((times, np.full(len(seen), at, dtype=np.int64)))
        kinds = np.concatenate((kinds, np.full(len(seen), columns.EVENT_TYPE_CODES["view"], dtype=np.int64)))
        known_price = np.where(seen >= 0, catalogue.prices[seen], 0.0) if len(catalogue.ids) else np.zeros(len(seen))
        prices = np.concatenate((prices, known_price))
        quantities = np.concatenate((quantities, np.ones(len(seen))))
        return Visitor(at, items, times, kinds, prices, quantities)
    return who


def visitor_from_indices(history: History, *, at: int) -> Visitor:
    """The same of a history whose items are catalogue indices already."""
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
    items: NDArray[np.int64]
    """Shape [C], catalogue indices, each once."""
    ranks: NDArray[np.int64]
    """Shape [C, len(SOURCES)]: place in each source from 0 on, ABSENT where it did not draw the item."""
    features: NDArray[np.float32]
    """Shape [C, len(CANDIDATE_FEATURES)]."""
    seed_items: NDArray[np.int64]
    """Shape [C]: the recent item that speaks most for this one by co-purchase, -1 for none."""

    def column(self, name: str) -> NDArray[np.float32]:
        return self.features[:, FEATURE_INDEX[name]]

    def filter(self, wanted: NDArray[np.bool_]) -> "Candidates":
        """Those where `wanted` (shape [C]) holds."""
        return Candidates(self.items[wanted], self.ranks[wanted], self.features[wanted], self.seed_items[wanted])


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
    """Draw at most `per_source` candidates from each source, or as `quotas` says in the order of SOURCES, and describe
    them.

    windows: item_windows of the catalogue at visitor.at; tower_hits: catalogue indices, nearest first; user_vector:
    shape [D], zeros when there is none; allowed: which items may be shown (None: all); popular:
    popular_items(windows), where that is worked out already.
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
    """USER_FEATURES, shape [len(USER_FEATURES)]."""
    return candidate_kernels.user_features(
        visitor.at, visitor.items, visitor.times, visitor.event_types, visitor.prices, visitor.quantities, _PURCHASE
    )
