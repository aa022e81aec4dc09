"""Lists that are of no visitor: what goes with an item, and what sells now."""

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


def similar(recommender: Recommender, board: ItemStats, item_id: str, request: SimilarRequest) -> dict[str, Any]:
    """An ItemList: items bought together with this one, then items near it. Raises Problem 404 for an unknown item."""
    started = time.perf_counter()
    catalogue = recommender.catalogue
    place = catalogue.index.get(item_id)
    if place is None:
        raise Problem(404, "Unknown item", f"release {recommender.manifest.version} does not know {item_id!r}")
    allowed = board.filters.allowed(request.filter) or ItemSet.from_mask(np.ones(len(catalogue.ids), dtype=bool))
    barred = catalogue.indices([*request.exclude, item_id])
    allowed = allowed.without(barred[barred >= 0])
    near = catalogue.neighbours[place][catalogue.neighbours[place] >= 0].astype(np.int64)
    together = near[allowed.contains(near)][: request.n]
    hits = recommender.nearest(catalogue.vectors[place], request.n + len(together), allowed)
    rest = hits[~np.isin(hits, together)][: request.n - len(together)]
    similarity = dict(zip(near.tolist(), catalogue.similarities[place].tolist(), strict=False))
    items = [
        _item(recommender, item, similarity[item], "co_purchase", "BOUGHT_TOGETHER", item_id)
        for item in together.tolist()
    ] + [
        _item(
            recommender,
            item,
            float(catalogue.vectors[item] @ catalogue.vectors[place]),
            "two_tower",
            "SIMILAR",
            item_id,
        )
        for item in rest.tolist()
    ]
    return _list(items, recommender, started)


def trending(recommender: Recommender, board: ItemStats, *, at: int, n: int) -> dict[str, Any]:
    """An ItemList: what was ordered most of late, today included."""
    started = time.perf_counter()
    scores = board.trending(at)
    best = np.lexsort((np.arange(len(scores)), -scores))[:n]
    items = [_item(recommender, item, float(scores[item]), "trending", "TRENDING", None) for item in best.tolist()]
    return _list(items, recommender, started)


def _list(items: list[dict[str, Any]], recommender: Recommender, started: float) -> dict[str, Any]:
    took = round((time.perf_counter() - started) * 1000, 3)
    return {"items": items, "release": recommender.manifest.version, "took_ms": took}


def _item(
    recommender: Recommender, item: int, score: float, source: str, code: str, because: str | None
) -> dict[str, Any]:
    catalogue = recommender.catalogue
    return {
        "item_id": catalogue.ids[item],
        "score": round(score, 6),
        "source": source,
        "reasons": [{"code": code, "text": TEXTS[code], "item_id": because}],
        "propensity": 1.0,
        "title": catalogue.titles[item],
        "price": round(float(catalogue.prices[item]), 2),
        "category": catalogue.categories[item] if catalogue.categories else "",
    }
