"""Item vectors to a Faiss index, with its recall measured against exact search.

Exact search up to 20,000 items; beyond, cells around k-means centres with vectors of 8 bits a dimension, of which a
search looks into the nearest few (decision 0019).
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

EXACT_ITEMS = 20_000
CELLS_PER_ROOT = 3.0
"""Cells of the index for each unit of the square root of the catalogue's size, to the next power of two."""
SEARCHED = 0.63
"""Cells that a search looks into, for each unit of the two-thirds power of their number: a sixteenth of a thousand."""
POINTS_PER_CELL = 64
"""Most vectors a cell that k-means sees."""
RECALL_AT = 100


def build_index(vectors: NDArray[np.float32]) -> tuple[faiss.Index, str]:
    """An inner-product index of `vectors` (float32 [N, D], unit length), and the name of its kind."""
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
        index.nprobe = max(1, round(SEARCHED * cells ** (2 / 3)))
        kind = f"IVF{cells},SQ8"
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
