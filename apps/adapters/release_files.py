"""Loads a published release (catalogue, index, ONNX models) and replaces it when the next one is published.

Arrays and index are mapped into memory, so that the processes of one machine share one copy. A damaged release is
refused with a log line, and the release before it keeps serving.
"""

import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnxruntime
import pyarrow.parquet as pq
from numpy.typing import NDArray

from apps.fraud.detector import OnnxFraudModel
from features.contract.release import (
    ARRAYS,
    CATALOGUE,
    FRAUD,
    INDEX,
    RANKER,
    USER_TOWER,
    Manifest,
    ReleaseError,
    current_version,
    read_release,
)
from features.recommender.catalogue import Catalogue, ItemSet

logger = logging.getLogger(__name__)


def open_onnx(path: Path) -> onnxruntime.InferenceSession:
    """Opens a session that runs on one thread, since the API's workers are the parallelism."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


WIDENING_POWER = 0.8
"""With a filter, the share of cells that is searched grows with this power of how many times fewer items are allowed:
recall@100 stays above .95 also where all allowed items are far from the query (docs/log.md)."""
DTYPES = {"F32": np.float32, "I32": np.int32, "I64": np.int64}


def map_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Maps the arrays of a safetensors file (8 bytes of header length, a JSON header, raw data) without a read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in header.items():
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        if 0 in shape:
            arrays[name] = np.empty(shape, dtype=dtype)
            continue
        mapped = np.memmap(path, dtype=dtype, mode="r", offset=8 + length + entry["data_offsets"][0], shape=shape)
        # As a plain array: indexing a memmap takes microseconds longer.
        arrays[name] = mapped.view(np.ndarray)
    return arrays


class RecommenderFiles:
    """Implements apps.ports.Recommender."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        table = pq.read_table(folder / CATALOGUE)
        arrays = map_arrays(folder / ARRAYS)
        ids = tuple(table["item_id"].to_pylist())
        categories = table["category"].to_pylist() if "category" in table.column_names else []
        self.windows: NDArray[np.float32] = arrays["windows"]
        self.catalogue = Catalogue(
            ids=ids,
            titles=tuple(table["title"].to_pylist()),
            prices=table["price"].to_numpy().astype(np.float32),
            neighbours=arrays["neighbours"],
            similarities=arrays["similarities"],
            vectors=arrays["vectors"],
            index={name: index for index, name in enumerate(ids)},
            categories=tuple(sys.intern(category or "") for category in categories),
        )
        self._index = faiss.read_index(str(folder / INDEX), faiss.IO_FLAG_MMAP_IFC)
        self._cells = self._index if isinstance(self._index, faiss.IndexIVF) else None
        self._tower = open_onnx(folder / USER_TOWER)
        self._ranker = open_onnx(folder / RANKER)

    def user_vectors(self, items: NDArray[np.int64], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self._tower.run(None, {"items": items, "weights": weights})[0]
        return vectors

    def nearest(self, vector: NDArray[np.float32], count: int, allowed: ItemSet | None) -> NDArray[np.int64]:
        # A setting of the calling thread. The API's workers are the parallelism, as with ONNX.
        faiss.omp_set_num_threads(1)
        if allowed is not None and allowed.members is not None:
            return self._among(allowed.members.astype(np.int64), vector, count)
        parameters = None
        if allowed is not None:
            # The type stubs of Faiss have the C++ signatures; its Python layer takes arrays and keywords.
            selector = faiss.IDSelectorBitmap(allowed.bits)  # type: ignore[call-arg,arg-type]
            if self._cells is None:
                parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
            else:
                # The fewer items are allowed, the further away are the nearest of them.
                widening = (allowed.size / max(1, allowed.count)) ** WIDENING_POWER
                cells = min(self._cells.nlist, int(self._cells.nprobe * widening))
                parameters = faiss.SearchParametersIVF(sel=selector, nprobe=cells)  # type: ignore[call-arg]
        _, labels = self._index.search(vector[None, :], min(count, self._index.ntotal), params=parameters)
        hits: NDArray[np.int64] = labels[0]
        return hits[hits >= 0]

    def _among(self, members: NDArray[np.int64], vector: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Searches some items exactly. Faiss gathers and compares in one pass; NumPy would copy the vectors first."""
        vectors, scores = self.catalogue.vectors, np.empty(len(members), dtype=np.float32)
        pointer = faiss.swig_ptr
        faiss.fvec_inner_products_by_idx(  # type: ignore[attr-defined]
            pointer(scores), pointer(vector), pointer(vectors), pointer(members), vectors.shape[1], 1, len(members)
        )
        if count < len(members):
            best = np.argpartition(-scores, count - 1)[:count]
            members, scores = members[best], scores[best]
        return members[np.argsort(-scores, kind="stable")]

    def rank(self, features: NDArray[np.float32], items: NDArray[np.int64]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = self._ranker.run(None, {"features": features, "items": items})[0]
        return scores


class Releases:
    """Holds the release that is served. `poll` replaces it as a whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._refused: str | None = None
        self._lock = threading.Lock()
        self.version: str | None = None
        self.recommender: RecommenderFiles | None = None
        self.fraud: OnnxFraudModel | None = None

    def poll(self) -> bool:
        """Loads the release that `current` points to if it is new and undamaged; True when it is served from now on."""
        with self._lock:
            version = current_version(self._folder)
            if version is None or version in (self.version, self._refused):
                return False
            try:
                folder, manifest = read_release(self._folder, version)
                recommender = RecommenderFiles(folder, manifest) if manifest.recommend else None
                fraud = OnnxFraudModel(folder / FRAUD, card=manifest.fraud, version=version) if manifest.fraud else None
            except (ReleaseError, OSError, KeyError, RuntimeError, ValueError) as error:
                self._refused = version
                logger.error("refused release %s, %s keeps serving: %s", version, self.version or "nothing", error)
                return False
            self.recommender, self.fraud, self.version = recommender, fraud, version
            logger.info("serving release %s", version)
            return True
