"""Candidates of one request from every source, within what the request and the surface allow."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.ports import Recommender
from apps.recommend import cold_items as news
from apps.recommend.cold_items import ColdItems
from apps.recommend.item_stats import ItemStats
from apps.recommend.reasons import first_sources
from apps.recommend.rules.schemas import SurfaceRules
from features.recommender.candidate_kernels import isin
from features.recommender.candidates import SOURCES, Candidates, Visitor, generate_candidates, padded_histories
from features.recommender.catalogue import ItemSet

MAX_COLD_CANDIDATES = 20
"""Most new items among the candidates, unless the rules of the surface say otherwise."""
NOTHING = np.empty(0, dtype=np.int64)
MAX_OVERFETCH = 100
"""Up to so many excluded items are left out after the vector search, which then looks for as many more."""


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """Candidates, and the items behind their indices: below the catalogue's size its own, from there on newcomers."""

    candidates: Candidates
    cold_items: ColdItems
    recommender: Recommender
    item_stats: ItemStats
    known: int
    """How many of the candidates are of the catalogue; they come first."""

    def described(self, items: NDArray[np.int64]) -> list[tuple[str, str, float, str]]:
        """(id, title, price, category) of each."""
        catalogue = self.recommender.catalogue
        ids, titles, categories, count = catalogue.ids, catalogue.titles, catalogue.categories, len(catalogue.ids)
        known = catalogue.prices[np.minimum(items, count - 1)] if count else np.zeros(len(items))
        prices: list[float] = known.astype(np.float64).round(2).tolist()
        told = []
        for item, price in zip(items.tolist(), prices, strict=True):
            if item < count:
                told.append((ids[item], titles[item], price, categories[item] if categories else ""))
            else:
                one = self.cold_items.items[item - count]
                told.append((one.item_id, one.title, round(one.price, 2), one.category))
        return told

    def values_of(self, field: str, rows: NDArray[np.int64]) -> list[str]:
        """`source` or `category` of rows of the candidates."""
        if field == "source":
            return first_sources(self.candidates.ranks[rows])
        items, count = self.candidates.items[rows], len(self.recommender.catalogue.ids)
        known, new = self.item_stats.filters.items.categories, self.cold_items.filters.items.categories
        return [known[item] if item < count else new[item - count] for item in items.tolist()]

    def index_of(self, item_id: str) -> int | None:
        return self.recommender.catalogue.index.get(item_id)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Shape [len(rows), D]."""
        items, count = self.candidates.items[rows], len(self.recommender.catalogue.ids)
        if self.known == len(self.candidates.items):
            return self.recommender.catalogue.vectors[items]
        new = items >= count
        found = np.empty((len(rows), self.cold_items.vectors.shape[1]), dtype=np.float32)
        found[~new] = self.recommender.catalogue.vectors[items[~new]]
        found[new] = self.cold_items.vectors[items[new] - count]
        return found

    def matches(self, expression: str) -> NDArray[np.bool_]:
        """Which candidates the expression holds for, shape [C]. Raises Problem 422."""
        items, count, known = self.candidates.items, len(self.recommender.catalogue.ids), self.known
        allowed = self.item_stats.filters.allowed(expression)
        if allowed is None:
            return np.ones(len(items), dtype=bool)
        held = allowed.contains(items[:known])
        fresh = self.cold_items.filters.allowed(expression) if known < len(items) else None
        return held if fresh is None else np.concatenate((held, fresh.contains(items[known:] - count)))

    @property
    def nearest_known(self) -> NDArray[np.int64]:
        """The items that the ranker is told of: a newcomer passes for the catalogue's item that is likest to it."""
        items, known = self.candidates.items, self.known
        if known == len(items):
            return items
        places = items[known:] - len(self.recommender.catalogue.ids)
        return np.concatenate((items[:known], self.cold_items.nearest_known[places]))


def user_vectors(visitors: list[Visitor], recommender: Recommender) -> NDArray[np.float32]:
    """Worked out from what is known of each visitor now: shape [B, D], zeros for a stranger."""
    known = [row for row, who in enumerate(visitors) if len(who.recent_items)]
    if len(known) == len(visitors):
        return recommender.user_vectors(*padded_histories(visitors))
    vectors = np.zeros((len(visitors), recommender.catalogue.vectors.shape[1]), dtype=np.float32)
    if known:
        vectors[known] = recommender.user_vectors(*padded_histories([visitors[row] for row in known]))
    return vectors


def generate(
    visitor: Visitor,
    vector: NDArray[np.float32],
    recommender: Recommender,
    item_stats: ItemStats,
    *,
    expression: str | None,
    exclude: list[str],
    rules: SurfaceRules,
    per_source: int,
) -> CandidateSet:
    """vector: of the visitor, by `user_vectors`. Raises Problem 422."""
    catalogue, newcomers = recommender.catalogue, item_stats.newcomers
    quotas = _quotas(rules, per_source)
    barred = catalogue.indices(exclude) if exclude else NOTHING
    barred = barred[barred >= 0]
    allowed, more = item_stats.filters.allowed(expression), 0
    if len(barred) > MAX_OVERFETCH and allowed is None:
        allowed = ItemSet.from_mask(np.ones(len(catalogue.ids), dtype=bool))
    if allowed is not None:
        allowed = allowed.without(barred)
    else:
        more = len(barred)
    near = quotas[SOURCES.index("two_tower")]
    hits = NOTHING
    if near and np.count_nonzero(vector):
        hits = recommender.nearest(vector, near + more, allowed)
    if more:
        hits = hits[~isin(hits, barred)]
    sales = item_stats.windows_at(visitor.at)
    candidates = generate_candidates(
        visitor,
        catalogue,
        sales.windows,
        tower_hits=_with_pins(hits, rules, recommender, near),
        user_vector=vector,
        per_source=per_source,
        quotas=quotas,
        allowed=allowed,
        popular=sales.popular,
    )
    if more:
        candidates = candidates.filter(~isin(candidates.items, barred))
    known = len(candidates.items)
    if newcomers.items:
        most = MAX_COLD_CANDIDATES if rules.sources.new is None else rules.sources.new
        places = news.select_cold_items(newcomers, expression, vector, barred=set(exclude), most=most)
        candidates = news.append_cold_items(
            candidates, newcomers, places, who=visitor, first_index=len(catalogue.ids), user_vector=vector
        )
    return CandidateSet(candidates, newcomers, recommender, item_stats, known)


def _quotas(rules: SurfaceRules, per_source: int) -> tuple[int, ...]:
    """Most candidates of each of SOURCES."""
    told = rules.sources
    wanted = (told.co_purchase, told.repurchase, told.two_tower, told.trending)
    return tuple(per_source if quota is None else quota for quota in wanted)


def _with_pins(hits: NDArray[np.int64], rules: SurfaceRules, recommender: Recommender, most: int) -> NDArray[np.int64]:
    """Pinned items have to be candidates: they join the hits of the vector search, within what is allowed."""
    ids = [rule.item_id for rule in rules.rules if rule.kind == "pin"]
    if not ids:
        return hits
    pinned = recommender.catalogue.indices(ids)
    pinned = pinned[pinned >= 0]
    others = hits[~isin(hits, pinned)]
    return np.concatenate((others[: max(0, most - len(pinned))], pinned))
