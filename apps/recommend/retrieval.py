"""Candidates of one request from every source, within what the request and the surface allow."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.ports import Recommender
from apps.recommend import newcomers as news
from apps.recommend.board import ItemBoard
from apps.recommend.newcomers import Newcomers
from apps.recommend.reasons import first_sources
from apps.recommend.rules import Pin, SurfaceRules
from features.candidates import SOURCES, Candidates, Visitor, draw, padded_histories
from features.catalogue import Subset
from features.drawing import among

NEW_ITEMS = 20
"""Most new items among the candidates, unless the rules of the surface say otherwise."""
MOST_OVERFETCHED = 100
"""Up to so many excluded items are left out after the vector search, which then looks for as many more."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Candidates, and the items behind their indices: below the catalogue's size its own, from there on newcomers."""

    candidates: Candidates
    newcomers: Newcomers
    recommender: Recommender
    board: ItemBoard

    @property
    def known(self) -> int:
        """How many of the candidates are of the catalogue; they come first."""
        return int(np.searchsorted(self.candidates.items, len(self.recommender.catalogue.ids)))

    def described(self, item: int) -> tuple[str, str, float, str]:
        """(id, title, price, category)."""
        catalogue = self.recommender.catalogue
        if item < len(catalogue.ids):
            category = catalogue.categories[item] if catalogue.categories else ""
            return catalogue.ids[item], catalogue.titles[item], float(catalogue.prices[item]), category
        one = self.newcomers.items[item - len(catalogue.ids)]
        return one.item_id, one.title, one.price, one.category

    def values_of(self, field: str) -> list[str]:
        """`source` or `category` of every candidate."""
        if field == "source":
            return first_sources(self.candidates.ranks)
        items, count, known = self.candidates.items, len(self.recommender.catalogue.ids), self.known
        values: list[str] = self.board.filters.items.categories[items[:known]].tolist()
        values += self.newcomers.filters.items.categories[items[known:] - count].tolist()
        return values

    def index_of(self, item_id: str) -> int | None:
        return self.recommender.catalogue.index.get(item_id)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Shape [len(rows), D]."""
        items, count = self.candidates.items[rows], len(self.recommender.catalogue.ids)
        new = items >= count
        if not new.any():
            return self.recommender.catalogue.vectors[items]
        found = np.empty((len(rows), self.newcomers.vectors.shape[1]), dtype=np.float32)
        found[~new] = self.recommender.catalogue.vectors[items[~new]]
        found[new] = self.newcomers.vectors[items[new] - count]
        return found

    def matches(self, expression: str) -> NDArray[np.bool_]:
        """Which candidates the expression holds for, shape [C]. Raises Problem 422."""
        items, count, known = self.candidates.items, len(self.recommender.catalogue.ids), self.known
        allowed = self.board.filters.allowed(expression)
        if allowed is None:
            return np.ones(len(items), dtype=bool)
        held = allowed.holds(items[:known])
        fresh = self.newcomers.filters.allowed(expression) if known < len(items) else None
        return held if fresh is None else np.concatenate((held, fresh.holds(items[known:] - count)))

    def rank(self) -> NDArray[np.float32]:
        """The ranker's score of each candidate; a newcomer passes for the item that is likest to it."""
        items, known = self.candidates.items, self.known
        if known < len(items):
            places = items[known:] - len(self.recommender.catalogue.ids)
            items = np.concatenate((items[:known], self.newcomers.likest[places]))
        return self.recommender.rank(self.candidates.features, items)


def retrieve(
    who: Visitor,
    recommender: Recommender,
    board: ItemBoard,
    *,
    expression: str | None,
    exclude: list[str],
    rules: SurfaceRules,
    per_source: int,
) -> Retrieved:
    """The user's vector is worked out here, from what is known of the visitor now. Raises Problem 422."""
    catalogue, newcomers = recommender.catalogue, board.newcomers
    quotas = _quotas(rules, per_source)
    barred = catalogue.indices(exclude)
    barred = barred[barred >= 0]
    allowed, more = board.filters.allowed(expression), 0
    if len(barred) > MOST_OVERFETCHED and allowed is None:
        allowed = Subset.of(np.ones(len(catalogue.ids), dtype=bool))
    if allowed is not None:
        allowed = allowed.without(barred)
    else:
        more = len(barred)
    vector, hits = _near(who, recommender, quotas[SOURCES.index("two_tower")] + more, allowed)
    if more:
        hits = hits[~among(hits, barred)]
    sales = board.sales(who.at)
    candidates = draw(
        who,
        catalogue,
        sales.windows,
        tower_hits=_with_pins(hits, rules, recommender, quotas[SOURCES.index("two_tower")]),
        user_vector=vector,
        per_source=per_source,
        quotas=quotas,
        allowed=allowed,
        best_sellers=sales.leaders,
    )
    if more:
        candidates = candidates.keep(~among(candidates.items, barred))
    if newcomers.items:
        most = NEW_ITEMS if rules.sources.new is None else rules.sources.new
        places = news.choose(newcomers, expression, vector, barred=set(exclude), most=most)
        candidates = news.add(
            candidates, newcomers, places, who=who, first_index=len(catalogue.ids), user_vector=vector
        )
    return Retrieved(candidates, newcomers, recommender, board)


def _quotas(rules: SurfaceRules, per_source: int) -> tuple[int, ...]:
    """Most candidates of each of SOURCES."""
    told = rules.sources
    wanted = (told.co_purchase, told.repurchase, told.two_tower, told.trending)
    return tuple(per_source if quota is None else quota for quota in wanted)


def _near(
    who: Visitor, recommender: Recommender, count: int, allowed: Subset | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The user's vector, zeros for a stranger, and what is nearest to it."""
    items, weights = padded_histories([who])
    if not weights.any():
        width = recommender.catalogue.vectors.shape[1]
        return np.zeros(width, dtype=np.float32), np.empty(0, dtype=np.int64)
    vector = recommender.user_vector(items, weights)
    hits = recommender.nearest(vector, count, allowed) if count else np.empty(0, dtype=np.int64)
    return vector, hits


def _with_pins(hits: NDArray[np.int64], rules: SurfaceRules, recommender: Recommender, most: int) -> NDArray[np.int64]:
    """Pinned items have to be candidates: they join the hits of the vector search, within what is allowed."""
    ids = [rule.item_id for rule in rules.rules if isinstance(rule, Pin)]
    if not ids:
        return hits
    pinned = recommender.catalogue.indices(ids)
    pinned = pinned[pinned >= 0]
    others = hits[~among(hits, pinned)]
    return np.concatenate((others[: max(0, most - len(pinned))], pinned))
