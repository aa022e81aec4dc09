"""Tests the vector index: its kind by size, and its recall against exact search."""

from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from training.release import index as training_index
from training.release.index import RECALL_AT, build_index, measure_recall


def unit(count: int, *, width: int = 16, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("kind", "least"), [("Flat", 1.0), ("IVF128,SQ8", 0.6)])
def test_the_kind_follows_the_size_and_recall_is_measured(
    monkeypatch: pytest.MonkeyPatch, kind: str, least: float
) -> None:
    monkeypatch.setattr(training_index, "EXACT_ITEMS", 10_000 if kind == "Flat" else 1_000)
    monkeypatch.setattr(training_index, "SEARCHED_CELLS", 1.26)  # random vectors form no clusters
    vectors, queries = unit(2_000), unit(50, seed=1)
    index, name = build_index(vectors)
    recall = measure_recall(index, vectors, queries)
    assert name == kind
    assert index.ntotal == 2_000
    assert least <= recall <= 1
    _, nearest = index.search(vectors[:100], 1)
    assert (nearest[:, 0] == np.arange(100)).mean() > 0.95


class Half:
    """An index that finds every second of the exact neighbours."""

    def __init__(self, exact: Any) -> None:
        self._exact = exact

    def search(self, queries: NDArray[np.float32], top: int) -> tuple[Any, NDArray[np.int64]]:
        scores, nearest = self._exact.search(queries, top)
        return scores, np.where(np.arange(top) % 2 == 0, nearest, -1)


def test_missed_neighbours_lower_the_recall() -> None:
    vectors = unit(500)
    exact, _ = build_index(vectors)
    assert measure_recall(Half(exact), vectors, unit(20, seed=2)) == pytest.approx(0.5)
    assert measure_recall(exact, vectors, vectors[:0]) == 1.0


def test_a_catalogue_smaller_than_the_list_has_full_recall() -> None:
    vectors = unit(RECALL_AT // 4)
    index, _ = build_index(vectors)
    assert measure_recall(index, vectors, unit(5, seed=3)) == 1.0
    single, _ = build_index(vectors[:1])
    assert measure_recall(single, vectors[:1], vectors[:1]) == 1.0


def test_an_index_read_from_its_bytes_answers_the_same() -> None:
    index, _ = build_index(unit(300))
    again = faiss.deserialize_index(faiss.serialize_index(index))
    queries = unit(5, seed=4)
    assert np.array_equal(index.search(queries, 10)[1], again.search(queries, 10)[1])
