"""Candidates for one request: drawn from several sources, and described by the features that the ranker reads.

Serving, ranker training and the gate all call `draw`, so that the ranker meets in service what it was trained on.
Knows nothing of models or stores: vector search hits come in as an argument.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features import columns
from features.catalogue import ITEM_WINDOWS, Catalogue
from features.history import History
from features.windows import DAY

SOURCES = ("co_purchase", "repurchase", "two_tower", "trending")
RECENT_ITEMS = 50
"""Items that the user tower and co-purchase read."""
ABSENT = 10_000
"""Rank of a candidate in a source that did not draw it."""

USER_FEATURES = (
    "user_orders_30d", "user_orders_90d", "user_orders_400d", "user_spend_90d", "user_mean_price",
    "user_items", "user_basket", "user_idle_days", "user_interval_days",
)  # fmt: skip
OWN_FEATURES = ("own_orders", "own_score", "own_idle_days", "own_due", "own_share", "own_returned", "own_viewed")
CANDIDATE_FEATURES = (
    "tower_score", "co_score", "co_best", *(f"rank_{source}" for source in SOURCES), *OWN_FEATURES, *ITEM_WINDOWS,
    "item_price", "price_ratio", *USER_FEATURES,
)  # fmt: skip
"""Columns of Candidates.features, in order. Ranks are 1 / (1 + place in the source), 0 when not drawn."""

FLOORS = {"popularity": "item_orders_30d", "co_purchase": "co_score", "repurchase": "own_score"}
"""Rankings without a model: each orders the candidates by one feature."""

NEVER_DAYS = 400.0
_COLUMN = {name: place for place, name in enumerate(CANDIDATE_FEATURES)}


@dataclass(frozen=True, slots=True)
class Visitor:
    """What is known of one user or session at one moment; arrays over entries, oldest first."""

    at: int
    """The moment of the request, ms."""
    items: NDArray[np.int64]
    """Catalogue index, -1 unknown."""
    times: NDArray[np.int64]
    kinds: NDArray[np.int64]
    prices: NDArray[np.float64]
    quantities: NDArray[np.float64]

    @property
    def recent(self) -> NDArray[np.int64]:
        """The latest RECENT_ITEMS items, oldest first; returned ones and unknown ones left out."""
        wanted = (self.items >= 0) & (self.kinds != columns.KIND_CODES["return"])
        recent: NDArray[np.int64] = self.items[wanted][-RECENT_ITEMS:]
        return recent

    @property
    def recency_weights(self) -> NDArray[np.float32]:
        """Weight of each of `recent`: 1 for the last visit, halved for each visit before it."""
        wanted = (self.items >= 0) & (self.kinds != columns.KIND_CODES["return"])
        times = self.times[wanted][-RECENT_ITEMS:]
        visits = np.unique(times)
        weights: NDArray[np.float32] = (0.5 ** (len(visits) - 1 - np.searchsorted(visits, times))).astype(np.float32)
        return weights


def visitor(history: History, catalogue: Catalogue, *, at: int, session_items: list[str] | None = None) -> Visitor:
    """The visitor of a one-row history of history.USER_COLUMNS; later entries are ignored.

    session_items: items looked at in this session, oldest first, which the history may not hold yet.
    """
    past = history.times <= at
    entries = {name: column[past] for name, column in history.entries.items()}
    items, times = catalogue.indices(entries[columns.ITEMS]), entries[columns.TIMES]
    kinds, prices, quantities = entries[columns.KINDS], entries[columns.PRICES], entries[columns.QUANTITIES]
    if session_items:
        seen = catalogue.indices(session_items)
        items = np.concatenate((items, seen))
        times = np.concatenate((times, np.full(len(seen), at, dtype=np.int64)))
        kinds = np.concatenate((kinds, np.full(len(seen), columns.KIND_CODES["view"], dtype=np.int64)))
        known_price = np.where(seen >= 0, catalogue.prices[seen], 0.0) if len(catalogue.ids) else np.zeros(len(seen))
        prices = np.concatenate((prices, known_price))
        quantities = np.concatenate((quantities, np.ones(len(seen))))
    return Visitor(at, items, times, kinds, prices, quantities)


@dataclass(frozen=True, slots=True)
class Candidates:
    items: NDArray[np.int64]
    """Shape [C], catalogue indices, each once."""
    ranks: NDArray[np.int64]
    """Shape [C, len(SOURCES)]: place in each source from 0 on, ABSENT where it did not draw the item."""
    features: NDArray[np.float32]
    """Shape [C, len(CANDIDATE_FEATURES)]."""
    because: NDArray[np.int64]
    """Shape [C]: the recent item that speaks most for this one by co-purchase, -1 for none."""

    def column(self, name: str) -> NDArray[np.float32]:
        return self.features[:, _COLUMN[name]]


def draw(
    who: Visitor,
    catalogue: Catalogue,
    windows: NDArray[np.float32],
    *,
    tower_hits: NDArray[np.int64],
    user_vector: NDArray[np.float32],
    per_source: int,
    allowed: NDArray[np.bool_] | None = None,
) -> Candidates:
    """Draw at most `per_source` candidates from each source and describe them.

    windows: item_windows of the catalogue at who.at; tower_hits: catalogue indices, nearest first; user_vector: shape
    [D], zeros when there is none; allowed: shape [N], which items may be shown (None: all).
    """
    co_items, co_scores, co_best, because = _co_purchase(who, catalogue)
    own = _Own(who)
    hot = _top(windows[:, ITEM_WINDOWS.index("item_orders_7d")], per_source // 2, allowed)
    popular = _top(windows[:, ITEM_WINDOWS.index("item_orders_30d")], per_source // 2, allowed)
    drawn = [
        _allowed(co_items[np.argsort(-co_scores, kind="stable")], allowed)[:per_source],
        _allowed(own.items[np.argsort(-own.score, kind="stable")], allowed)[:per_source],
        _allowed(tower_hits, allowed)[:per_source],
        np.concatenate((hot, popular[~np.isin(popular, hot)])),
    ]
    items = np.unique(np.concatenate(drawn)).astype(np.int64)
    ranks = np.full((len(items), len(SOURCES)), ABSENT, dtype=np.int64)
    for place, source in enumerate(drawn):
        ranks[np.searchsorted(items, source), place] = np.arange(len(source))

    features = np.zeros((len(items), len(CANDIDATE_FEATURES)), dtype=np.float32)
    where, found = _find(co_items, items)
    features[:, _COLUMN["tower_score"]] = catalogue.vectors[items] @ user_vector
    features[found, _COLUMN["co_score"]] = co_scores[where]
    features[found, _COLUMN["co_best"]] = co_best[where]
    reason = np.full(len(items), -1, dtype=np.int64)
    reason[found] = because[where]
    first = _COLUMN["rank_co_purchase"]
    features[:, first : first + len(SOURCES)] = np.where(ranks == ABSENT, 0, 1 / (1 + ranks))
    first = _COLUMN[OWN_FEATURES[0]]
    features[:, first : first + len(OWN_FEATURES)] = own.describe(items)
    first = _COLUMN[ITEM_WINDOWS[0]]
    features[:, first : first + len(ITEM_WINDOWS)] = windows[items]
    user = _user_features(who)
    prices = catalogue.prices[items]
    mean_price = user[USER_FEATURES.index("user_mean_price")]
    features[:, _COLUMN["item_price"]] = prices
    features[:, _COLUMN["price_ratio"]] = np.log((prices + 0.1) / (mean_price + 0.1)) if mean_price > 0 else 0.0
    features[:, _COLUMN[USER_FEATURES[0]] :] = user
    return Candidates(items, ranks, features, reason)


def _top(scores: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """The `count` allowed items with the highest scores above 0, highest first."""
    usable = scores if allowed is None else np.where(allowed, scores, 0)
    count = min(count, len(usable))
    if not count:
        return np.empty(0, dtype=np.int64)
    best = np.argpartition(-usable, count - 1)[:count]
    best = best[np.lexsort((best, -usable[best]))]
    return best[usable[best] > 0]


def _allowed(items: NDArray[np.int64], allowed: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    return items if allowed is None else items[allowed[items]]


def _find(sorted_items: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Places in `sorted_items` of the wanted items that are there, and which of the wanted those are."""
    if not len(sorted_items):
        return np.empty(0, dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    place = np.minimum(np.searchsorted(sorted_items, wanted), len(sorted_items) - 1)
    found = sorted_items[place] == wanted
    return place[found], found


def _co_purchase(
    who: Visitor, catalogue: Catalogue
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Items near the recent ones: (items ascending, summed similarity, best similarity, recent item of the best)."""
    recent, weights = who.recent, who.recency_weights
    near = catalogue.neighbours[recent]
    pull = catalogue.similarities[recent] * weights[:, None]
    real = near >= 0
    items, place = np.unique(near[real], return_inverse=True)
    flat = pull[real].astype(np.float64)
    total = np.bincount(place, weights=flat, minlength=len(items)).astype(np.float64)
    order = np.lexsort((-flat, place))
    leads = np.searchsorted(place[order], np.arange(len(items)))
    origin = np.broadcast_to(recent[:, None], near.shape)[real]
    return items.astype(np.int64), total, flat[order][leads], origin[order][leads].astype(np.int64)


class _Own:
    """What the visitor did with each item before."""

    def __init__(self, who: Visitor) -> None:
        known = who.items >= 0
        self.at = who.at
        bought = known & (who.kinds == columns.KIND_CODES["purchase"])
        pairs = np.unique(np.column_stack((who.items[bought], who.times[bought])), axis=0)
        item_of, times = pairs[:, 0], pairs[:, 1]
        self.items, self._first, counts = np.unique(item_of, return_index=True, return_counts=True)
        self._orders = counts.astype(np.float64)
        age_days = (who.at - times) / DAY
        place = np.repeat(np.arange(len(self.items)), counts)
        self.score = np.bincount(place, weights=0.5 ** (age_days / 60), minlength=len(self.items)).astype(np.float64)
        self._idle = age_days[self._first + counts - 1] if len(counts) else np.empty(0)
        self._span = (age_days[self._first] - self._idle) if len(counts) else np.empty(0)
        self._visits = max(1, len(np.unique(times)))
        self._returned = np.unique(who.items[known & (who.kinds == columns.KIND_CODES["return"])])
        self._viewed = np.unique(
            who.items[known & (who.kinds <= columns.KIND_CODES["cart"]) & (who.times > who.at - DAY)]
        )

    def describe(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """OWN_FEATURES of each item, shape [C, len(OWN_FEATURES)]."""
        result = np.zeros((len(items), len(OWN_FEATURES)), dtype=np.float32)
        result[:, 2] = NEVER_DAYS
        where, found = _find(self.items, items)
        orders, idle = self._orders[where], self._idle[where]
        interval = np.where(orders > 1, self._span[where] / np.maximum(orders - 1, 1), 60.0)
        result[found, 0] = orders
        result[found, 1] = self.score[where]
        result[found, 2] = idle
        result[found, 3] = np.minimum(idle / np.maximum(interval, 1.0), 10.0)
        result[found, 4] = orders / self._visits
        result[:, 5] = np.isin(items, self._returned)
        result[:, 6] = np.isin(items, self._viewed)
        return result


def _user_features(who: Visitor) -> NDArray[np.float32]:
    """USER_FEATURES, shape [len(USER_FEATURES)]."""
    bought = who.kinds == columns.KIND_CODES["purchase"]
    times, spend = who.times[bought], (who.prices * who.quantities)[bought]
    if not len(times):
        return np.array([0, 0, 0, 0, 0, 0, 0, NEVER_DAYS, NEVER_DAYS], dtype=np.float32)
    visits = np.unique(times)
    orders = [float((visits > who.at - days * DAY).sum()) for days in (30, 90, 400)]
    interval = (visits[-1] - visits[0]) / DAY / max(1, len(visits) - 1) if len(visits) > 1 else NEVER_DAYS
    return np.array(
        [
            *orders,
            spend[times > who.at - 90 * DAY].sum(),
            who.prices[bought].mean(),
            len(np.unique(who.items[bought])),
            len(times) / len(visits),
            (who.at - visits[-1]) / DAY,
            interval,
        ],
        dtype=np.float32,
    )
