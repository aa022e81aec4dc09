"""Takes the candidates of one request from every source, within what the request and the surface allow.

Where the sources are, and what a new one touches:

| source                                                  | takes its items in                                         |
|---------------------------------------------------------|------------------------------------------------------------|
| `co_purchase`, `repurchase`, `two_tower`, `trending`    | features/recommender/candidate_kernels.py, one pass over   |
| (features/recommender/candidates.py, SOURCES)           | all, so that training meets the candidates of serving      |
| `two_tower`: the hits of the vector search              | `_nearest_items` here                                      |
| `new`: items that the release does not know             | apps/recommend/cold_items.py                               |

A source that the ranker shall learn from joins SOURCES and the kernel; one that no model knows joins the candidates as
cold items do. Either has a quota in rules/schemas.py (Sources), a reason in reasons.py with its code in schemas.py, and
a row in docs/recommend.md.
"""

import numpy as np
from numpy.typing import NDArray

from apps.ports import Recommender
from apps.recommend.candidate_set import CandidateSet
from apps.recommend.cold_items import append_cold_items, select_cold_items
from apps.recommend.item_stats import ItemStats
from apps.recommend.rules.schemas import SurfaceRules
from features.recommender.candidate_kernels import isin
from features.recommender.candidates import SOURCES, Visitor, generate_candidates, padded_histories
from features.recommender.catalogue import ItemSet

MAX_COLD_CANDIDATES = 20
"""Most cold items among the candidates, unless the rules of the surface say otherwise."""
MAX_OVERFETCH = 100
"""Up to so many excluded items are left out after the vector search, which then looks for as many more."""
NO_ITEMS = np.empty(0, dtype=np.int64)


def user_vectors(visitors: list[Visitor], recommender: Recommender) -> NDArray[np.float32]:
    """Computes the vector of each visitor from what is known now: shape [B, D], zeros for a stranger."""
    known = [row for row, visitor in enumerate(visitors) if len(visitor.recent_items)]
    if len(known) == len(visitors):
        return recommender.user_vectors(*padded_histories(visitors))
    vectors = np.zeros((len(visitors), recommender.catalogue.vectors.shape[1]), dtype=np.float32)
    if known:
        vectors[known] = recommender.user_vectors(*padded_histories([visitors[row] for row in known]))
    return vectors


def generate(
    visitor: Visitor,
    user_vector: NDArray[np.float32],
    recommender: Recommender,
    item_stats: ItemStats,
    *,
    expression: str | None,
    exclude: list[str],
    rules: SurfaceRules,
    per_source: int,
) -> CandidateSet:
    """Returns the candidates of a request. user_vector: by `user_vectors`; expression: the request's filter; exclude:
    ids of items that may not be shown; per_source: most candidates of a source without a quota. Raises Problem 422."""
    catalogue, cold_items = recommender.catalogue, item_stats.cold_items
    excluded = catalogue.indices(exclude) if exclude else NO_ITEMS
    excluded = excluded[excluded >= 0]
    allowed = item_stats.filters.allowed(expression)
    if len(excluded) > MAX_OVERFETCH and allowed is None:
        allowed = ItemSet.from_mask(np.ones(len(catalogue.ids), dtype=bool))
    if allowed is not None:
        allowed, excluded = allowed.without(excluded), NO_ITEMS
    quotas = _quotas(rules, per_source)
    two_tower = quotas[SOURCES.index("two_tower")]
    hits = _nearest_items(user_vector, recommender, two_tower, allowed, excluded)
    sales = item_stats.windows_at(visitor.at)
    candidates = generate_candidates(
        visitor,
        catalogue,
        sales.windows,
        tower_hits=_with_pins(hits, rules, recommender, two_tower),
        user_vector=user_vector,
        per_source=per_source,
        quotas=quotas,
        allowed=allowed,
        popular=sales.popular,
    )
    if len(excluded):
        candidates = candidates.filter(~isin(candidates.items, excluded))
    catalogue_rows = len(candidates.items)
    if cold_items.items:
        most = MAX_COLD_CANDIDATES if rules.sources.new is None else rules.sources.new
        selected = select_cold_items(cold_items, expression, user_vector, excluded=set(exclude), most=most)
        candidates = append_cold_items(
            candidates,
            cold_items,
            selected,
            visitor=visitor,
            first_index=len(catalogue.ids),
            user_vector=user_vector,
        )
    return CandidateSet(candidates, catalogue, item_stats.filters, cold_items, catalogue_rows)


def _quotas(rules: SurfaceRules, per_source: int) -> tuple[int, ...]:
    """Returns the most candidates of each of SOURCES."""
    quotas = (getattr(rules.sources, source) for source in SOURCES)
    return tuple(per_source if quota is None else quota for quota in quotas)


def _nearest_items(
    user_vector: NDArray[np.float32],
    recommender: Recommender,
    count: int,
    allowed: ItemSet | None,
    excluded: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Returns at least `count` allowed items nearest to the visitor, where there are so many, without the excluded
    ones; none for a stranger."""
    if not count or not np.count_nonzero(user_vector):
        return NO_ITEMS
    hits = recommender.nearest(user_vector, count + len(excluded), allowed)
    return hits[~isin(hits, excluded)] if len(excluded) else hits


def _with_pins(hits: NDArray[np.int64], rules: SurfaceRules, recommender: Recommender, most: int) -> NDArray[np.int64]:
    """Adds pinned items to the hits of the vector search, since they have to be candidates; within what is allowed."""
    ids = [rule.item_id for rule in rules.rules if rule.kind == "pin"]
    if not ids:
        return hits
    pinned = recommender.catalogue.indices(ids)
    pinned = pinned[pinned >= 0]
    others = hits[~isin(hits, pinned)]
    return np.concatenate((others[: max(0, most - len(pinned))], pinned))
