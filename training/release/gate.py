"""The gate: compares the ranker with baselines that need no model, on held-out visits, before it may be served.

A visit that bought something counts as one request at its first moment; relevant is what was bought. Items bought
before may be recommended again, since re-purchase is common in a shop.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from features.contract.release import GateResult
from features.recommender.candidates import BASELINES, Candidates, baseline_order
from training.core.ranking_metrics import hit_rate, ndcg, recall
from training.recommender.examples import RankingExample, RetrievalExample

CandidateScorer = Callable[[Candidates], NDArray[np.float32]]
"""Scores of one request's candidates, higher is better, float32 [candidates]."""


def evaluate(
    queries: list[RetrievalExample],
    examples: list[RankingExample],
    scorer: CandidateScorer,
    *,
    model: str,
    k: int,
    items: int,
) -> GateResult:
    """Compares the model with every baseline over the same requests; visits that bought no known item are left out.

    examples: the candidates of each query. items: size of the catalogue. The model is served only when its NDCG@k is
    above that of every baseline.
    """
    scorers: dict[str, CandidateScorer] = {model: scorer}
    scorers |= {name: _baseline_scorer(name) for name in BASELINES}
    requests = [
        (example.candidates, query.targets)
        for query, example in zip(queries, examples, strict=True)
        if len(query.targets)
    ]
    metrics = {name: _measure(requests, scorer, k=k, items=items) for name, scorer in scorers.items()}
    metric = f"ndcg@{k}"
    scores = {name: values[metric] for name, values in metrics.items()}
    best_baseline = max(BASELINES, key=lambda name: scores[name])
    return GateResult(
        metric=metric,
        scores=scores,
        model=model,
        best_baseline=best_baseline,
        served=model if scores[model] > scores[best_baseline] else best_baseline,
        metrics=metrics,
    )


def _baseline_scorer(name: str) -> CandidateScorer:
    """Returns a scorer that orders candidates by the baseline's feature, ties by popularity, as serving does."""

    def score(candidates: Candidates) -> NDArray[np.float32]:
        order = baseline_order(candidates, name)
        scores = np.empty(len(order), dtype=np.float32)
        scores[order] = -np.arange(len(order))
        return scores

    return score


def _measure(
    requests: list[tuple[Candidates, NDArray[np.int64]]], scorer: CandidateScorer, *, k: int, items: int
) -> dict[str, float]:
    """Returns mean NDCG, recall and hit rate at k, coverage of the catalogue, and the number of requests."""
    hits, shown = np.zeros((len(requests), k), dtype=np.bool_), set()
    for row, (candidates, targets) in enumerate(requests):
        ranked = candidates.items[np.argsort(-scorer(candidates), kind="stable")][:k]
        hits[row, : len(ranked)] = np.isin(ranked, targets)
        shown.update(ranked.tolist())
    relevant = np.array([len(targets) for _, targets in requests], dtype=np.int64)
    means = {
        f"ndcg@{k}": ndcg(hits, relevant, k=k),
        f"recall@{k}": recall(hits, relevant, k=k),
        f"hit@{k}": hit_rate(hits, k=k),
    }
    return {
        **{name: float(values.mean()) if len(values) else 0.0 for name, values in means.items()},
        "coverage": len(shown) / max(1, items),
        "orders": float(len(requests)),
    }


def candidate_recall(queries: list[RetrievalExample], examples: list[RankingExample]) -> float:
    """Returns the mean share of a visit's purchases that are among its candidates: no ranker can exceed it."""
    shares = [
        np.isin(query.targets, example.candidates.items).mean()
        for query, example in zip(queries, examples, strict=True)
        if len(query.targets)
    ]
    return float(np.mean(shares)) if shares else 0.0
