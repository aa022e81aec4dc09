"""Builds the lists that depend on no visitor: items similar to an item, and what is trending."""

import time
from typing import Any

import numpy as np

from apps.http.errors import Problem
from apps.ports import Recommender
from apps.recommend.item_stats import ItemStats
from apps.recommend.schemas import SimilarRequest
from features.recommender.catalogue import ItemSet

TEXTS = {
    "BOUGHT_TOGETHER": "Often bought in the same order",
    "SIMILAR": "Close to it by who buys it and by its title",
    "TRENDING": "Ordered often in the last days",
}


def similar(recommender: Recommender, item_stats: ItemStats, item_id: str, request: SimilarRequest) -> dict[str, Any]:
    """Returns an ItemList as plain data: items bought together with this one, then items whose vectors are near.

    Raises Problem 404 for an unknown item, 422 for a filter that is not valid.
    """
    started = time.perf_counter()
    catalogue = recommender.catalogue
    index = catalogue.index.get(item_id)
    if index is None:
        raise Problem(404, "Unknown item", f"release {recommender.manifest.version} does not know {item_id!r}")
    allowed = item_stats.filters.allowed(request.filter) or ItemSet.from_mask(np.ones(len(catalogue.ids), dtype=bool))
    excluded = catalogue.indices([*request.exclude, item_id])
    allowed = allowed.without(excluded[excluded >= 0])
    neighbours = catalogue.neighbours[index][catalogue.neighbours[index] >= 0].astype(np.int64)
    together = neighbours[allowed.contains(neighbours)][: request.n]
    vector = catalogue.vectors[index]
    hits = recommender.nearest(vector, request.n + len(together), allowed)
    near = hits[~np.isin(hits, together)][: request.n - len(together)]
    similarity = dict(zip(neighbours.tolist(), catalogue.similarities[index].tolist(), strict=False))
    items = [
        _item(recommender, item, similarity[item], "co_purchase", "BOUGHT_TOGETHER", item_id)
        for item in together.tolist()
    ] + [
        _item(recommender, item, float(catalogue.vectors[item] @ vector), "two_tower", "SIMILAR", item_id)
        for item in near.tolist()
    ]
    return _list(items, recommender, started)


def trending(recommender: Recommender, item_stats: ItemStats, *, at: int, n: int) -> dict[str, Any]:
    """Returns an ItemList as plain data: what was ordered most lately, today included. at: ms."""
    started = time.perf_counter()
    scores = item_stats.trending(at)
    best = np.lexsort((np.arange(len(scores)), -scores))[:n]
    items = [_item(recommender, item, float(scores[item]), "trending", "TRENDING", None) for item in best.tolist()]
    return _list(items, recommender, started)


def _list(items: list[dict[str, Any]], recommender: Recommender, started: float) -> dict[str, Any]:
    took = round((time.perf_counter() - started) * 1000, 3)
    return {"items": items, "release": recommender.manifest.version, "took_ms": took}


def _item(
    recommender: Recommender, item: int, score: float, source: str, code: str, similar_to: str | None
) -> dict[str, Any]:
    catalogue = recommender.catalogue
    return {
        "item_id": catalogue.ids[item],
        "score": round(score, 6),
        "source": source,
        "reasons": [{"code": code, "text": TEXTS[code], "item_id": similar_to}],
        "propensity": 1.0,
        "title": catalogue.titles[item],
        "price": round(float(catalogue.prices[item]), 2),
        "category": catalogue.categories[item] if catalogue.categories else "",
    }
