"""Measures what the parts of an answer cost, on one thread and without HTTP; and the index search under filters."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson

from apps.adapters.release_files import RecommenderFiles
from apps.recommend.schemas import RecommendRequest
from apps.wiring import Services
from features.recommender.catalogue import ItemSet

WARM, REPEATS = 100, 600
SHARES = (1.0, 0.1, 0.01, 0.001)
QUERIES = 50


def kernels(services: Services, bodies: Sequence[bytes]) -> tuple[dict[str, float], float, int]:
    """Returns mean CPU milliseconds of each kernel by name, of the whole path from the request's bytes to the answer's,
    and the mean number of candidates that a request ranks.

    Kernels are timed within the path, because a kernel that runs alone finds its data in the cache.
    """
    recommender = services.releases.recommender
    assert recommender is not None
    spent = dict.fromkeys(("feature read", "encoder", "faiss", "ranker", "json"), 0.0)
    sizes: list[int] = []
    services.recommend.watch = lambda features: sizes.append(len(features))

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            started = time.thread_time()
            try:
                return call(*arguments)
            finally:
                spent[name] += time.thread_time() - started

        return run

    parse, dump = timed("json", RecommendRequest.model_validate_json), timed("json", orjson.dumps)
    for owner, method, name in (
        (services.reader, "user_history", "feature read"),
        (recommender, "user_vectors", "encoder"),
        (recommender, "nearest", "faiss"),
        (recommender, "rank", "ranker"),
    ):
        setattr(owner, method, timed(name, getattr(owner, method)))
    for number in range(WARM + REPEATS):
        if number == WARM:
            spent.update(dict.fromkeys(spent, 0.0))
            path_started = time.thread_time()
        dump(services.recommend.recommend(parse(bodies[number % len(bodies)])))
    path = time.thread_time() - path_started
    kernel_ms = {name: seconds * 1000 / REPEATS for name, seconds in spent.items()}
    return kernel_ms, path * 1000 / REPEATS, int(np.mean(sizes))


def filtered(recommender: RecommenderFiles) -> dict[str, dict[str, float]]:
    """Returns recall@100 against exact search and median milliseconds, by the share of items that a filter leaves."""
    rng, vectors = np.random.default_rng(5), recommender.catalogue.vectors
    results: dict[str, dict[str, float]] = {}
    for share in SHARES:
        mask = rng.random(len(vectors)) < share
        allowed, members = ItemSet.from_mask(mask) if share < 1 else None, np.flatnonzero(mask)
        recalls, took = [], []
        for item in rng.integers(0, max(1, len(vectors)), QUERIES if len(members) else 0):
            noise = rng.normal(scale=0.3 / vectors.shape[1] ** 0.5, size=vectors.shape[1])
            query = vectors[item] + noise.astype(np.float32)
            started = time.perf_counter()
            hits = recommender.nearest(query, 100, allowed)
            took.append((time.perf_counter() - started) * 1000)
            exact = members[np.argsort(-(vectors[members] @ query))[:100]]
            recalls.append(np.isin(exact, hits).mean())
        if recalls:
            recall, median = float(np.mean(recalls)), float(np.median(took))
            results[f"{share:.1%}"] = {"recall_at_100": round(recall, 4), "ms": round(median, 3)}
    return results
