"""What ranked lists are worth: exact metrics over all items, and how sure one can be of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.benchmark.interactions import Sequences
from training.benchmark.lists import NOBODY
from training.benchmark.protocols import Cases

RESAMPLES = 400


@dataclass(frozen=True, slots=True)
class Measured:
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """95 % bootstrap over users, for the metrics that are means over them."""


def per_case(
    lists: NDArray[np.int64], cases: Cases, *, ks: tuple[int, ...], items: int
) -> dict[str, NDArray[np.float64]]:
    """Of each case: hr@k (any target found), recall@k (share of min(k, targets) found), ndcg@k and mrr.

    lists: int64 [cases, DEPTH], best first, NOBODY where a list is shorter. ndcg@k has binary gains, the discount
    1 / log2(place + 1) and the best possible list as its norm (Jaervelin and Kekaelaeinen, TOIS 2002); mrr is
    1 / place of the first target, 0 when that is not among the DEPTH.
    """
    keys = np.sort(cases.targets.row_of_entry * items + cases.targets.items)
    asked = np.where(lists == NOBODY, -1, np.arange(len(lists))[:, None] * items + lists)
    hits = keys[np.minimum(np.searchsorted(keys, asked), len(keys) - 1)] == asked
    count = cases.targets.lengths
    discounts = 1 / np.log2(np.arange(2, max(*ks, lists.shape[1]) + 2))
    ideal = np.cumsum(discounts)
    result = {}
    for k in ks:
        found = hits[:, :k].sum(axis=1)
        result[f"hr@{k}"] = (found > 0).astype(np.float64)
        result[f"recall@{k}"] = found / np.minimum(k, count)
        result[f"ndcg@{k}"] = hits[:, :k] @ discounts[: hits[:, :k].shape[1]] / ideal[np.minimum(k, count) - 1]
    result["mrr"] = np.where(hits.any(axis=1), 1 / (1 + hits.argmax(axis=1)), 0.0)
    return result


def ndcg(lists: NDArray[np.int64], cases: Cases, *, items: int) -> float:
    """Mean NDCG@10: what epochs and settings are chosen by."""
    return float(per_case(lists, cases, ks=(10,), items=items)["ndcg@10"].mean())


def whole_list(lists: NDArray[np.int64], cases: Cases, *, learnt: Sequences, items: int, k: int) -> dict[str, float]:
    """What the first k places hold as a whole.

    coverage@k: share of the catalogue that is in any list. novelty@k: mean of -log2(share of the learning users who
    took the item), an item of nobody counting as half a user's. popularity_bias@k: how often the shown items were
    taken in learning, over how often the items of the askers' own histories were: 1 is as popular as their taste.
    """
    shown = lists[:, :k][lists[:, :k] != NOBODY]
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


def interval(rows: dict[str, NDArray[np.float64]], *, seed: int) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap of each mean, resampling users (Efron, Annals of Statistics 1979)."""
    matrix = np.column_stack(list(rows.values()))
    rng = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, matrix.shape[1]))
    for place in range(RESAMPLES):
        times_drawn = np.bincount(rng.integers(0, len(matrix), len(matrix)), minlength=len(matrix))
        means[place] = times_drawn @ matrix / len(matrix)
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return {name: (float(low[place]), float(high[place])) for place, name in enumerate(rows)}


def measure(
    lists: NDArray[np.int64], cases: Cases, *, learnt: Sequences, items: int, ks: tuple[int, ...], seed: int
) -> Measured:
    """Every metric of the lists (int64 [cases, DEPTH]) at each k; the whole-list ones at the first k."""
    rows = per_case(lists, cases, ks=ks, items=items)
    values = {name: float(row.mean()) for name, row in rows.items()}
    values |= whole_list(lists, cases, learnt=learnt, items=items, k=ks[0])
    return Measured(values, interval(rows, seed=seed))
