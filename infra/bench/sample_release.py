"""Publishes small complete releases, whose models are one sum each: enough to serve every endpoint for real."""

from datetime import UTC, datetime
from pathlib import Path

import faiss
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from features.contract.drift import reference_distributions
from features.contract.release import (
    ARRAYS,
    CATALOGUE,
    FRAUD,
    INDEX,
    RANKER,
    USER_TOWER,
    FraudModelCard,
    GateResult,
    Manifest,
    RecommendModelCard,
)
from features.fraud.velocity import FEATURES
from features.recommender.candidates import CANDIDATE_FEATURES, RECENT_ITEMS
from features.recommender.catalogue import ITEM_WINDOWS
from training.release import publish
from training.release.index import build_index

ITEMS, WIDTH = 500, 16


def publish_release(
    releases: Path, version: str, *, items: int = ITEMS, width: int = WIDTH, fraud_model: bool = True
) -> Path:
    """Publishes a release of `items` items and, unless left out, of a fraud model that scores by the amount.

    Returns its folder.
    """
    building = publish.begin(releases, version)
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(200, width)).astype(np.float32)
    vectors = centres[rng.integers(0, 200, items)] + 0.7 * rng.normal(size=(items, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index, kind = build_index(vectors)
    faiss.write_index(index, str(building / INDEX))
    ids = [f"item-{number}" for number in range(items)]
    pq.write_table(
        pa.table({"item_id": ids, "title": ids, "price": np.linspace(1, 50, items).astype(np.float32)}),
        building / CATALOGUE,
    )
    windows = rng.integers(1, 20, (items, len(ITEM_WINDOWS))).astype(np.float32)
    neighbours = rng.integers(0, max(1, items), (items, 10)).astype(np.int32)
    similarities = np.full((items, 10), 0.5, dtype=np.float32)
    save_file(
        {"vectors": vectors, "neighbours": neighbours, "similarities": similarities, "windows": windows},
        building / ARRAYS,
    )
    _write_models(building, width)
    moment = datetime(2026, 11, 1, tzinfo=UTC)
    inputs = rng.gamma(2.0, size=(1000, len(CANDIDATE_FEATURES))).astype(np.float32)
    payments = rng.gamma(2.0, size=(1000, len(FEATURES))).astype(np.float32)
    manifest = Manifest(
        version=version, created_time=moment, data_start=moment, data_end=moment, packages={}, seed=7, files={},
        recommend=RecommendModelCard(
            feature_service="users_v1", gate=_gate("ranker", "popularity"), index_kind=kind, index_recall=1.0,
            candidate_features=CANDIDATE_FEATURES, catalogue_items=items,
            references=reference_distributions(inputs, CANDIDATE_FEATURES),
        ),
        fraud=None if not fraud_model else FraudModelCard(
            feature_service="cards_v1", gate=_gate("dcn_v2", "logistic_regression"), features=FEATURES,
            reference_values=(1.0,) * len(FEATURES), review_threshold=0.9, decline_threshold=1.0,
            alert_budget_per_day=10, references=reference_distributions(payments, FEATURES),
        ),
    )  # fmt: skip
    return publish.publish(building, manifest)


def _gate(model: str, baseline: str) -> GateResult:
    scores = {model: 0.3, baseline: 0.1}
    return GateResult(metric="score", scores=scores, model=model, best_baseline=baseline, served=model, metrics={})


def _write_models(folder: Path, width: int) -> None:
    real, whole = TensorProto.FLOAT, TensorProto.INT64
    axis = helper.make_tensor("axis", whole, [1], [1])
    _save(
        folder / USER_TOWER,
        [
            helper.make_node("ReduceSum", ["weights", "axis"], ["sum"], keepdims=1),
            helper.make_node("Expand", ["sum", "width"], ["vector"]),
            helper.make_node("Identity", ["items"], ["unused"]),
        ],
        {"items": (whole, ["n", RECENT_ITEMS]), "weights": (real, ["n", RECENT_ITEMS])},
        {"vector": (real, ["n", width])},
        [axis, helper.make_tensor("width", whole, [2], [1, width])],
    )
    _save(
        folder / RANKER,
        [
            helper.make_node("ReduceSum", ["features", "axis"], ["sum"], keepdims=0),
            helper.make_node("Cast", ["items"], ["number"], to=real),
            helper.make_node("Add", ["sum", "number"], ["score"]),
        ],
        {"features": (real, ["n", len(CANDIDATE_FEATURES)]), "items": (whole, ["n"])},
        {"score": (real, ["n"])},
        [axis],
    )
    _save(
        folder / FRAUD,
        [
            helper.make_node("Gather", ["features", "index"], ["column"], axis=1),
            helper.make_node("Squeeze", ["column", "axis"], ["amount"]),
            helper.make_node("Div", ["amount", "thousand"], ["share"]),
            helper.make_node("Clip", ["share", "zero", "top"], ["probability"]),
        ],
        {"features": (real, ["n", len(FEATURES)])},
        {"probability": (real, ["n"])},
        [
            axis,
            helper.make_tensor("index", whole, [1], [FEATURES.index("amount")]),
            helper.make_tensor("thousand", real, [], [1000.0]),
            helper.make_tensor("zero", real, [], [0.0]),
            helper.make_tensor("top", real, [], [0.99]),
        ],
    )


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[str | int]]],
    outputs: dict[str, tuple[int, list[str | int]]],
    constants: list[onnx.TensorProto],
) -> None:
    """Writes an ONNX graph; inputs and outputs are (element type, shape) by name."""
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in outputs.items()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
