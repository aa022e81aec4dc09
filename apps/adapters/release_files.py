"""A published release, loaded: catalogue, index and ONNX models; and the watch that swaps in the next one.

A release that is damaged is refused with a log line, and the one before it keeps serving.
"""

import logging
import threading
from pathlib import Path

import faiss
import numpy as np
import onnxruntime
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file

from apps.fraud.model import OnnxFraudModel
from features.catalogue import Catalogue
from features.manifest import (
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

logger = logging.getLogger(__name__)


def open_onnx(path: Path) -> onnxruntime.InferenceSession:
    """A session that answers on one thread: the API's workers are the parallelism."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class RecommenderFiles:
    """See apps.ports.Recommender."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        table = pq.read_table(folder / CATALOGUE)
        arrays = load_file(folder / ARRAYS)
        ids = tuple(table["item_id"].to_pylist())
        self.windows: NDArray[np.float32] = arrays["windows"]
        self.catalogue = Catalogue(
            ids=ids,
            titles=tuple(table["title"].to_pylist()),
            prices=table["price"].to_numpy().astype(np.float32),
            neighbours=arrays["neighbours"],
            similarities=arrays["similarities"],
            vectors=arrays["vectors"],
            index={name: place for place, name in enumerate(ids)},
        )
        self._index = faiss.read_index(str(folder / INDEX))
        self._tower = open_onnx(folder / USER_TOWER)
        self._ranker = open_onnx(folder / RANKER)

    def user_vector(self, items: NDArray[np.int64], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self._tower.run(None, {"items": items, "weights": weights})[0][0]
        return vector

    def nearest(self, vector: NDArray[np.float32], count: int, allowed: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        parameters = None
        if allowed is not None:
            # The stubs of faiss give the C++ signatures; its Python layer takes arrays and keywords.
            selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))  # type: ignore[call-arg,arg-type]
            parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        _, found = self._index.search(vector[None, :], min(count, self._index.ntotal), params=parameters)
        hits: NDArray[np.int64] = found[0]
        return hits[hits >= 0]

    def rank(self, features: NDArray[np.float32], items: NDArray[np.int64]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = self._ranker.run(None, {"features": features, "items": items})[0]
        return scores


class Releases:
    """The release that is served now. `poll` looks for another; it never leaves the served one half replaced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._refused: str | None = None
        self._lock = threading.Lock()
        self.version: str | None = None
        self.recommender: RecommenderFiles | None = None
        self.fraud: OnnxFraudModel | None = None

    def poll(self) -> bool:
        """Load what `current` points to, if it is new and whole; True when another release is served from now on."""
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
