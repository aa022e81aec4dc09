"""Measures ranked lists: exact metrics over all items, with confidence intervals."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.benchmark.interactions import Sequences
from training.benchmark.lists import NO_ITEM
from training.benchmark.protocols import Cases
from training.core.ranking_metrics import hit_rate, ndcg, recall

RESAMPLES = 400
"""Bootstrap samples of an interval."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Holds the metrics of a model's lists."""

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """95 % bootstrap over users, for the metrics that are means over them."""


def case_metrics(
    lists: NDArray[np.int64], cases: Cases, *, ks: tuple[int, ...], items: int
) -> dict[str, NDArray[np.float64]]:
    """Returns hr@k (any target found), recall@k, ndcg@k and mrr of each case.

    lists: int64 [cases, DEPTH], best first, NO_ITEM where a list is shorter. Definitions at k: ranking_metrics. mrr is
    1 / position of the first target, 0 when no target is among the DEPTH.
    """
    keys = np.sort(cases.targets.row_of_entry * items + cases.targets.items)
    listed = np.where(lists == NO_ITEM, -1, np.arange(len(lists))[:, None] * items + lists)
    hits = keys[np.minimum(np.searchsorted(keys, listed), len(keys) - 1)] == listed
    relevant = cases.targets.lengths
    metrics = {}
    for k in ks:
        metrics[f"hr@{k}"] = hit_rate(hits, k=k)
        metrics[f"recall@{k}"] = recall(hits, relevant, k=k)
        metrics[f"ndcg@{k}"] = ndcg(hits, relevant, k=k)
    metrics["mrr"] = np.where(hits.any(axis=1), 1 / (1 + hits.argmax(axis=1)), 0.0)
    return metrics


def mean_ndcg(lists: NDArray[np.int64], cases: Cases, *, items: int) -> float:
    """Returns the mean NDCG@10, by which epochs and settings are chosen."""
    return float(case_metrics(lists, cases, ks=(10,), items=items)["ndcg@10"].mean())


def list_statistics(
    lists: NDArray[np.int64], cases: Cases, *, learnt: Sequences, items: int, k: int
) -> dict[str, float]:
    """Measures the first k positions of all lists together.

    coverage@k: share of the catalogue that is in any list. novelty@k: mean of -log2(share of the training users who
    took the item), where an item that nobody took counts as half a user. popularity_bias@k: mean number of users who
    took the listed items in training, over that of the items in the histories of the cases: 1 is as popular as those.
    """
    shown = lists[:, :k][lists[:, :k] != NO_ITEM]
    if not len(shown):
        return {f"coverage@{k}": 0.0, f"novelty@{k}": 0.0, f"popularity_bias@{k}": 0.0}
    pairs = np.unique(learnt.row_of_entry * items + learnt.items)
    takers = np.bincount(pairs % items, minlength=items).astype(np.float64)
    users = max(1, int((learnt.lengths > 0).sum()))
    taste = takers[cases.inputs.items].mean()
    return {
        f"coverage@{k}": len(np.unique(shown)) / items,
        f"novelty@{k}": float(-np.log2(np.maximum(takers[shown], 0.5) / users).mean()),
        f"popularity_bias@{k}": float(takers[shown].mean() / taste) if taste else 0.0,
    }


def bootstrap_intervals(rows: dict[str, NDArray[np.float64]], *, seed: int) -> dict[str, tuple[float, float]]:
    """Returns the 95 % percentile bootstrap of each mean, resampling users (Efron, Annals of Statistics 1979)."""
    matrix = np.column_stack(list(rows.values()))
    rng = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, matrix.shape[1]))
    for sample in range(RESAMPLES):
        counts = np.bincount(rng.integers(0, len(matrix), len(matrix)), minlength=len(matrix))
        means[sample] = counts @ matrix / len(matrix)
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return {name: (float(low[column]), float(high[column])) for column, name in enumerate(rows)}


def measure(
    lists: NDArray[np.int64], cases: Cases, *, learnt: Sequences, items: int, ks: tuple[int, ...], seed: int
) -> Measurement:
    """Returns all metrics of the lists (int64 [cases, DEPTH]) at each k; those of `list_statistics` at the first k."""
    rows = case_metrics(lists, cases, ks=ks, items=items)
    values = {name: float(row.mean()) for name, row in rows.items()}
    values |= list_statistics(lists, cases, learnt=learnt, items=items, k=ks[0])
    return Measurement(values, bootstrap_intervals(rows, seed=seed))
