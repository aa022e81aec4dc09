"""Candidates for one request: drawn from several sources, and described by the features that the ranker reads.

Serving, ranker training and the gate all call `draw`, so that the ranker meets in service what it was trained on.
Knows nothing of models or stores: vector search hits come in as an argument.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from features import columns
from features.catalogue import ITEM_WINDOWS, Catalogue, Leaders, Subset, leaders
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
_OF_RANK = np.concatenate((1 / np.arange(1, ABSENT + 1), [0])).astype(np.float32)
"""The feature of a rank."""


@dataclass(frozen=True)
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

    @cached_property
    def _latest(self) -> NDArray[np.int64]:
        """Places of `recent` among the entries."""
        wanted = (self.items >= 0) & (self.kinds != columns.KIND_CODES["return"])
        latest: NDArray[np.int64] = wanted.nonzero()[0][-RECENT_ITEMS:]
        return latest

    @cached_property
    def recent(self) -> NDArray[np.int64]:
        """The latest RECENT_ITEMS items, oldest first; returned ones and unknown ones left out."""
        return self.items[self._latest]

    @cached_property
    def recency_weights(self) -> NDArray[np.float32]:
        """Weight of each of `recent`: 1 for the last visit, halved for each visit before it."""
        times = self.times[self._latest]
        visit = np.zeros(len(times))
        (times[1:] != times[:-1]).cumsum(out=visit[1:])
        weights: NDArray[np.float32] = np.exp2(visit - visit[-1:]).astype(np.float32)
        return weights


def padded_histories(visitors: list[Visitor]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What the user tower reads: items int64 [B, RECENT_ITEMS] and weights float32, each row summing to 1 or 0."""
    items = np.zeros((len(visitors), RECENT_ITEMS), dtype=np.int64)
    weights = np.zeros((len(visitors), RECENT_ITEMS), dtype=np.float32)
    for row, who in enumerate(visitors):
        recent = who.recent
        if len(recent):
            weight = who.recency_weights
            items[row, : len(recent)] = recent
            weights[row, : len(recent)] = weight / weight.sum()
    return items, weights


def visitor(history: History, catalogue: Catalogue, *, at: int, session_items: list[str] | None = None) -> Visitor:
    """The visitor of a one-row history of history.USER_COLUMNS; later entries are ignored.

    session_items: items looked at in this session, oldest first, which the history may not hold yet.
    """
    known = catalogue.indices(history.entries[columns.ITEMS])
    who = coded_visitor(History(history.offsets, history.entries | {columns.ITEMS: known}), at=at)
    if session_items:
        items, times, kinds, prices, quantities = who.items, who.times, who.kinds, who.prices, who.quantities
        seen = catalogue.indices(session_items)
        items = np.concatenate((items, seen))
        times = np.concatenate((times, np.full(len(seen), at, dtype=np.int64)))
        kinds = np.concatenate((kinds, np.full(len(seen), columns.KIND_CODES["view"], dtype=np.int64)))
        known_price = np.where(seen >= 0, catalogue.prices[seen], 0.0) if len(catalogue.ids) else np.zeros(len(seen))
        prices = np.concatenate((prices, known_price))
        quantities = np.concatenate((quantities, np.ones(len(seen))))
        return Visitor(at, items, times, kinds, prices, quantities)
    return who


def coded_visitor(history: History, *, at: int) -> Visitor:
    """The same of a history whose items are catalogue indices already."""
    past, entries = history.times <= at, history.entries
    if not past.all():
        entries = {name: column[past] for name, column in entries.items()}
    return Visitor(
        at, entries[columns.ITEMS], entries[columns.TIMES], entries[columns.KINDS], entries[columns.PRICES],
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
    because: NDArray[np.int64]
    """Shape [C]: the recent item that speaks most for this one by co-purchase, -1 for none."""

    def column(self, name: str) -> NDArray[np.float32]:
        return self.features[:, _COLUMN[name]]

    def keep(self, wanted: NDArray[np.bool_]) -> "Candidates":
        """Those where `wanted` (shape [C]) holds."""
        return Candidates(self.items[wanted], self.ranks[wanted], self.features[wanted], self.because[wanted])


def draw(
    who: Visitor,
    catalogue: Catalogue,
    windows: NDArray[np.float32],
    *,
    tower_hits: NDArray[np.int64],
    user_vector: NDArray[np.float32],
    per_source: int,
    quotas: tuple[int, ...] | None = None,
    allowed: Subset | None = None,
    best_sellers: Leaders | None = None,
) -> Candidates:
    """Draw at most `per_source` candidates from each source, or as `quotas` says in the order of SOURCES, and describe
    them.

    windows: item_windows of the catalogue at who.at; tower_hits: catalogue indices, nearest first; user_vector: shape
    [D], zeros when there is none; allowed: which items may be shown (None: all); best_sellers:
    leaders(windows), where that is worked out already.
    """
    co_items, co_scores, co_best, because = _co_purchase(who, catalogue)
    own = _Own(who)
    sellers = best_sellers or leaders(windows)
    together, again, near, selling = quotas or (per_source,) * len(SOURCES)
    hot = _first(sellers.hot, selling // 2, allowed)
    popular = _first(sellers.popular, selling // 2, allowed)
    drawn = [
        _highest(co_items, co_scores, together, allowed),
        _highest(own.items, own.score, again, allowed),
        _allowed(tower_hits, allowed)[:near],
        np.concatenate((hot, popular[~(popular[:, None] == hot).any(axis=1)])),
    ]
    items = np.sort(np.concatenate(drawn), kind="stable")
    items = items[_starts(items)]
    ranks = np.full((len(items), len(SOURCES)), ABSENT, dtype=np.int64)
    for place, source in enumerate(drawn):
        ranks[items.searchsorted(source), place] = np.arange(len(source))

    features = np.zeros((len(items), len(CANDIDATE_FEATURES)), dtype=np.float32)
    where, found = _find(co_items, items)
    features[:, _COLUMN["tower_score"]] = catalogue.vectors[items] @ user_vector
    features[found, _COLUMN["co_score"]] = co_scores[where]
    features[found, _COLUMN["co_best"]] = co_best[where]
    reason = np.full(len(items), -1, dtype=np.int64)
    reason[found] = because[where]
    first = _COLUMN["rank_co_purchase"]
    features[:, first : first + len(SOURCES)] = _OF_RANK[ranks]
    own.describe(items, features[:, _COLUMN[OWN_FEATURES[0]] :])
    first = _COLUMN[ITEM_WINDOWS[0]]
    features[:, first : first + len(ITEM_WINDOWS)] = windows[items]
    user = user_features(who)
    prices = catalogue.prices[items]
    mean_price = user[USER_FEATURES.index("user_mean_price")]
    features[:, _COLUMN["item_price"]] = prices
    features[:, _COLUMN["price_ratio"]] = np.log((prices + 0.1) / (mean_price + 0.1)) if mean_price > 0 else 0.0
    features[:, _COLUMN[USER_FEATURES[0]] :] = user
    return Candidates(items, ranks, features, reason)


def _highest(
    items: NDArray[np.int64], scores: NDArray[np.float64], count: int, allowed: Subset | None
) -> NDArray[np.int64]:
    """The `count` allowed items (given ascending) with the highest scores, highest first, among equals the first."""
    if allowed is not None:
        held = allowed.holds(items)
        items, scores = items[held], scores[held]
    if 2 * count < len(items):
        # A full sort of thousands costs as much as ranking them: keep what reaches the last score that counts.
        least = np.partition(scores, len(scores) - count)[len(scores) - count] if count else np.inf
        best = np.flatnonzero(scores >= least)
        items, scores = items[best], scores[best]
    return items[np.argsort(-scores, kind="stable")[:count]]


def _first(items: NDArray[np.int64], count: int, allowed: Subset | None) -> NDArray[np.int64]:
    """The first `count` allowed ones; few are looked at where most are allowed."""
    if allowed is None:
        return items[:count]
    looked = 4 * count
    while True:
        found = items[:looked][allowed.holds(items[:looked])]
        if len(found) >= count or looked >= len(items):
            return found[:count]
        looked *= 8


def _allowed(items: NDArray[np.int64], allowed: Subset | None) -> NDArray[np.int64]:
    return items if allowed is None else items[allowed.holds(items)]


def _find(sorted_items: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Places in `sorted_items` of the wanted items that are there, and which of the wanted those are."""
    if not len(sorted_items):
        return np.empty(0, dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    place = np.minimum(sorted_items.searchsorted(wanted), len(sorted_items) - 1)
    found = sorted_items[place] == wanted
    return place[found], found


def _co_purchase(
    who: Visitor, catalogue: Catalogue
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Items near the recent ones: (items ascending, summed similarity, best similarity, recent item of the best)."""
    recent = who.recent
    near = catalogue.neighbours[recent]
    pulls = (catalogue.similarities[recent] * who.recency_weights[:, None]).ravel()
    # One sort of whole numbers, by item and then by falling pull: floats from 0 up are ordered as their bits.
    key = near.ravel().astype(np.int64)
    key <<= 32
    key |= np.uint32(2**32 - 1) - pulls.view(np.uint32)
    order = key.argsort()
    flat = key[order]
    flat >>= 32
    first = _starts(flat)
    first = first[flat[first] >= 0]
    sorted_pulls: NDArray[np.float64] = pulls[order].astype(np.float64)
    total: NDArray[np.float64] = np.add.reduceat(sorted_pulls, first) if len(first) else np.empty(0)
    because: NDArray[np.int64] = recent[order[first] // max(1, near.shape[1])]
    return flat[first], total, sorted_pulls[first], because


def _starts(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each run of equal values begins."""
    changes = np.empty(len(values), dtype=bool)
    changes[:1] = True
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    return changes.nonzero()[0]


class _Own:
    """What the visitor did with each item before."""

    def __init__(self, who: Visitor) -> None:
        known = who.items >= 0
        bought = (known & (who.kinds == columns.KIND_CODES["purchase"])).nonzero()[0]
        item_of, times = who.items[bought], who.times[bought]
        order = np.lexsort((times, item_of))
        item_of, times = item_of[order], times[order]
        # An item bought twice in one order counts once.
        once = np.ones(len(times), dtype=bool)
        once[1:] = (item_of[1:] != item_of[:-1]) | (times[1:] != times[:-1])
        item_of, times = item_of[once], times[once]
        first = _starts(item_of)
        last = np.empty(len(first), dtype=np.int64)
        last[:-1], last[-1:] = first[1:] - 1, len(item_of) - 1
        self.items = item_of[first]
        age_days = (who.at - times) / DAY
        halved = np.exp2(age_days / -60)
        self.score: NDArray[np.float64] = np.add.reduceat(halved, first) if len(times) else halved
        orders = (last - first + 1).astype(np.float64)
        idle = age_days[last]
        interval = np.where(orders > 1, (age_days[first] - idle) / np.maximum(orders - 1, 1), 60.0)
        due = np.minimum(idle / np.maximum(interval, 1.0), 10.0)
        visits = max(1, len(set(times.tolist())))
        self._table = np.stack((orders, self.score, idle, due, orders / visits), axis=1, dtype=np.float32)
        """OWN_FEATURES of self.items, but for the last two."""
        self._returned = who.items[known & (who.kinds == columns.KIND_CODES["return"])]
        self._viewed = who.items[known & (who.kinds <= columns.KIND_CODES["cart"]) & (who.times > who.at - DAY)]

    def describe(self, items: NDArray[np.int64], features: NDArray[np.float32]) -> None:
        """Fill in OWN_FEATURES of each item, the first columns of `features` (zeros, shape [C, from there on])."""
        features[:, 2] = NEVER_DAYS
        where, found = _find(self.items, items)
        features[found, :5] = self._table[where]
        for place, done in ((5, self._returned), (6, self._viewed)):
            if len(done):
                features[:, place] = _find(np.sort(done), items)[1]


def user_features(who: Visitor) -> NDArray[np.float32]:
    """USER_FEATURES, shape [len(USER_FEATURES)]."""
    bought = (who.kinds == columns.KIND_CODES["purchase"]).nonzero()[0]
    if not len(bought):
        return np.array([0, 0, 0, 0, 0, 0, 0, NEVER_DAYS, NEVER_DAYS], dtype=np.float32)
    times, prices = who.times[bought], who.prices[bought]
    spend = prices * who.quantities[bought]
    # Few and in order already: Python's own sets are quicker here than sorting arrays.
    visits = sorted(set(times.tolist()))
    orders = [len(visits) - bisect_right(visits, who.at - days * DAY) for days in (30, 90, 400)]
    interval = (visits[-1] - visits[0]) / DAY / (len(visits) - 1) if len(visits) > 1 else NEVER_DAYS
    return np.array(
        [
            *orders,
            spend[times > who.at - 90 * DAY].sum(),
            prices.mean(),
            len(set(who.items[bought].tolist())),
            len(times) / len(visits),
            (who.at - visits[-1]) / DAY,
            interval,
        ],
        dtype=np.float32,
    )
