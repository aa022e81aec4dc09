"""Writes the recommender's part of a release: index, user tower, ranker, catalogue and arrays; opens its ranker.

Knows nothing of how they were fitted, or of the manifest.
"""

from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from features.contract.release import ARRAYS, CATALOGUE, INDEX, RANKER, USER_TOWER
from features.recommender.candidates import CANDIDATE_FEATURES, RECENT_ITEMS, Candidates
from features.recommender.catalogue import Catalogue
from training.core.export import export, open_onnx
from training.models.ranker import PlainRanker
from training.models.two_tower import PooledTower
from training.release.gate import CandidateScorer


def write_recommender(
    out: Path,
    catalogue: Catalogue,
    item_windows: NDArray[np.float32],
    index: faiss.Index,
    *,
    user_tower: PooledTower,
    ranker: PlainRanker,
) -> None:
    """Writes the files into the folder `out`. item_windows: float32 [items, len(ITEM_WINDOWS)], as of the split."""
    rows = min(3, len(catalogue.ids))
    export(
        user_tower,
        out / USER_TOWER,
        {"items": torch.zeros((rows, RECENT_ITEMS), dtype=torch.long), "weights": torch.rand((rows, RECENT_ITEMS))},
        output="vector",
    )
    export(
        ranker,
        out / RANKER,
        {"features": torch.rand((rows, len(CANDIDATE_FEATURES))) * 10, "items": torch.arange(rows)},
        output="score",
    )
    faiss.write_index(index, str(out / INDEX))
    pq.write_table(
        pa.table(
            {
                "item_id": list(catalogue.ids),
                "title": list(catalogue.titles),
                "price": catalogue.prices,
                "category": list(catalogue.categories) or pa.nulls(len(catalogue.ids), pa.string()),
            }
        ),
        out / CATALOGUE,
    )
    arrays = {
        "vectors": catalogue.vectors,
        "neighbours": catalogue.neighbours,
        "similarities": catalogue.similarities,
        "windows": item_windows,
    }
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, out / ARRAYS)


def open_ranker(path: Path) -> CandidateScorer:
    """Returns a scorer that runs the exported ranker."""
    session = open_onnx(path)

    def score(candidates: Candidates) -> NDArray[np.float32]:
        (scores,) = session.run(None, {"features": candidates.features, "items": candidates.items})
        return np.asarray(scores, dtype=np.float32)

    return score
