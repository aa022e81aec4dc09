"""Item vectors to a Faiss index, with its recall measured against exact search.

The kind follows the size (measured at 64 dimensions on one core, docs/decisions/0004-libraries.md): exact search up to
50,000 items, 8-bit scalar quantisation up to 300,000, HNSW beyond.
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

EXACT_ITEMS = 50_000
QUANTISED_ITEMS = 300_000
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 200, 200
RECALL_AT = 100


def build_index(vectors: NDArray[np.float32]) -> tuple[faiss.Index, str]:
    """An inner-product index of `vectors` (float32 [N, D], unit length), and the name of its kind."""
    count, width = vectors.shape
    index: Any
    if count <= EXACT_ITEMS:
        index, kind = faiss.IndexFlatIP(width), "Flat"
    elif count <= QUANTISED_ITEMS:
        index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        kind = "SQ8"
    else:
        index = faiss.IndexHNSWFlat(width, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = HNSW_BUILD, HNSW_SEARCH
        kind = f"HNSW{HNSW_LINKS}"
    index.train(vectors)
    index.add(vectors)
    return index, kind


def measure_recall(index: faiss.Index, vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> float:
    """Mean share of each query's exact nearest RECALL_AT items that the index returns, 0 to 1; 1 without queries."""
    if not len(queries):
        return 1.0
    top = min(RECALL_AT, len(vectors))
    _, found = index.search(queries, top)
    exact = np.argpartition(-(queries @ vectors.T), top - 1, axis=1)[:, :top]
    return float(np.mean([np.isin(truth, hits).mean() for truth, hits in zip(exact, found, strict=True)]))
