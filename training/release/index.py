"""Builds a Faiss index of item vectors, and measures its recall against exact search.

Up to 20,000 items the search is exact. Beyond, vectors are stored with 8 bits a dimension in cells around k-means
centres, and a search reads the nearest few cells (decision 0019).
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

EXACT_ITEMS = 20_000
CELLS_PER_ROOT = 3.0
"""Cells of the index for each unit of the square root of the catalogue's size, to the next power of two."""
SEARCHED_CELLS = 0.63
"""Cells that a search reads, for each unit of the two-thirds power of their number: 63 of 1,000 cells."""
POINTS_PER_CELL = 64
"""Most vectors for each cell that k-means is fitted on."""
RECALL_AT = 100


def build_index(vectors: NDArray[np.float32]) -> tuple[faiss.Index, str]:
    """Builds an inner-product index of `vectors` (float32 [N, D], unit length); returns it and the name of its kind."""
    count, width = vectors.shape
    index: Any
    if count <= EXACT_ITEMS:
        index, kind = faiss.IndexFlatIP(width), "Flat"
    else:
        cells = int(2 ** np.round(np.log2(CELLS_PER_ROOT * count**0.5)))
        centres = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFScalarQuantizer(
            centres, width, cells, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.max_points_per_centroid = POINTS_PER_CELL
        index.nprobe = max(1, round(SEARCHED_CELLS * cells ** (2 / 3)))
        kind = f"IVF{cells},SQ8"
    index.train(vectors)
    index.add(vectors)
    return index, kind


def measure_recall(index: faiss.Index, vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> float:
    """Returns the mean share of a query's RECALL_AT exact nearest items that the index finds; 1 without queries."""
    if not len(queries):
        return 1.0
    top = min(RECALL_AT, len(vectors))
    _, results = index.search(queries, top)
    exact = np.argpartition(-(queries @ vectors.T), top - 1, axis=1)[:, :top]
    return float(np.mean([np.isin(truth, hits).mean() for truth, hits in zip(exact, results, strict=True)]))
