"""The gate: what the whole answer is worth on held-out visits, beside rankings that need no model.

A visit that bought counts as one request at its first moment; the truth is what was bought. Items bought before may be
recommended again, since buying again is common in a shop.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from features.contract.release import GateResult
from features.recommender.candidates import BASELINES, Candidates, baseline_order
from training.recommender.examples import RankingExample, RetrievalExample

Scorer = Callable[[Candidates], NDArray[np.float32]]


def list_metrics(ranked: NDArray[np.int64], targets: NDArray[np.int64], *, k: int) -> tuple[float, float, float]:
    """(NDCG@k, recall@k, hit@k) of one ranked list against the items bought; targets must not be empty.

    Binary gains, discount 1 / log2(place + 1), places from 1 (Jaervelin and Kekaelaeinen, TOIS 2002). Recall is the
    share of min(k, targets) that was found.

    >>> import numpy as np
    >>> list_metrics(np.array([5, 7, 9]), np.array([7]), k=3)
    (0.6309297535714575, 1.0, 1.0)
    """
    hits = np.isin(ranked[:k], targets)
    discounts = 1 / np.log2(np.arange(2, k + 2))
    best = discounts[: min(k, len(targets))].sum()
    found = float(hits.sum())
    return float((discounts[: len(hits)] * hits).sum() / best), found / min(k, len(targets)), float(found > 0)


def evaluate(
    queries: list[RetrievalExample], drawn: list[RankingExample], scorer: Scorer, *, model: str, k: int, items: int
) -> GateResult:
    """The model beside every floor, over the same requests; those that bought no known item are left out.

    items: size of the catalogue. The model is served only when its NDCG@k is above every floor's.
    """
    rankings: dict[str, Scorer] = {model: scorer}
    rankings |= {name: _baseline_scorer(name) for name in BASELINES}
    pairs = [(query, one) for query, one in zip(queries, drawn, strict=True) if len(query.targets)]
    metrics = {name: _measure(pairs, ranking, k=k, items=items) for name, ranking in rankings.items()}
    metric = f"ndcg@{k}"
    scores = {name: measured[metric] for name, measured in metrics.items()}
    best_baseline = max(BASELINES, key=lambda name: scores[name])
    return GateResult(
        metric=metric,
        scores=scores,
        model=model,
        best_baseline=best_baseline,
        served=model if scores[model] > scores[best_baseline] else best_baseline,
        metrics=metrics,
    )


def _baseline_scorer(name: str) -> Scorer:
    """Returns scores that order candidates by a baseline as serving does."""

    def score(candidates: Candidates) -> NDArray[np.float32]:
        order = baseline_order(candidates, name)
        scores = np.empty(len(order), dtype=np.float32)
        scores[order] = -np.arange(len(order))
        return scores

    return score


def _measure(
    pairs: list[tuple[RetrievalExample, RankingExample]], scorer: Scorer, *, k: int, items: int
) -> dict[str, float]:
    rows, shown = [], set()
    for query, one in pairs:
        ranked = one.candidates.items[np.argsort(-scorer(one.candidates), kind="stable")][:k]
        rows.append(list_metrics(ranked, query.targets, k=k))
        shown.update(ranked.tolist())
    ndcg, recall, hit = np.mean(rows, axis=0) if rows else (0.0, 0.0, 0.0)
    return {
        f"ndcg@{k}": float(ndcg),
        f"recall@{k}": float(recall),
        f"hit@{k}": float(hit),
        "coverage": len(shown) / max(1, items),
        "orders": float(len(pairs)),
    }


def candidate_recall(queries: list[RetrievalExample], drawn: list[RankingExample]) -> float:
    """Mean share of what each visit bought among its candidates: what no ranker can exceed."""
    shares = [
        np.isin(query.targets, one.candidates.items).mean()
        for query, one in zip(queries, drawn, strict=True)
        if len(query.targets)
    ]
    return float(np.mean(shares)) if shares else 0.0
