"""`headrace train`: learn, judge, publish. The whole run from top to bottom, in the order in which it happens."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TypeVar

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from features import views
from features.candidates import CANDIDATE_FEATURES, RECENT_ITEMS, Candidates
from features.catalogue import Catalogue
from features.drift import references
from features.events import from_milliseconds
from features.feast_import import FeatureStore
from features.manifest import (
    ARRAYS,
    CATALOGUE,
    INDEX,
    RANKER,
    USER_TOWER,
    FraudCard,
    GateResult,
    Manifest,
    RecommendCard,
)
from features.store import open_store
from features.timeline import NoDataError, Timeline, read_timeline
from infra.settings import Settings
from training import data, publish
from training.configs import Config
from training.evaluate import candidate_recall, judge
from training.export import export, open_onnx
from training.fraud import load_examples, train_fraud
from training.index import build_index, measure_recall
from training.models.ranker import PlainRanker
from training.ranking import draw_all, fit_ranker
from training.retrieval import Retrieval, fit_retrieval
from training.shard import choose_device, process_group

T = TypeVar("T")
Say = Callable[[str], None]
PACKAGES = ("torch", "torchrec", "faiss-cpu", "onnxruntime", "numpy", "feast")


def run(settings: Settings, config: Config, *, now: datetime, say: Say) -> Manifest:
    """Train everything the data allows, and publish the release. Returns its manifest.

    Raises NoDataError when there is nothing to learn from.
    """
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    version = now.strftime("%Y%m%dT%H%M%SZ")
    store = open_store(settings)
    building = publish.begin(settings.releases_dir, version)
    started = time.monotonic()
    with process_group(choose_device()):
        timeline = read_timeline(settings)
        recommend = train_recommend(store, settings, config, timeline, out=building, say=say)
        fraud = train_fraud_if_any(settings, config, out=building, say=say)
    for name, card in (("recommend", recommend), ("fraud", fraud)):
        if card is not None:
            say(f"{name}: {_told(card.gate)}")
    manifest = Manifest(
        version=version,
        created_time=now,
        data_start=from_milliseconds(timeline.start),
        data_end=from_milliseconds(timeline.split),
        packages={name: package_version(name) for name in PACKAGES},
        seed=config.seed,
        recommend=recommend,
        fraud=fraud,
        files={},
    )
    publish.publish(building, manifest)
    say(f"release {version} published")
    _record_run(settings.runs_dir, config, manifest, seconds=time.monotonic() - started)
    return manifest


def _told(gate: GateResult) -> str:
    """The gate in one line."""
    scores = sorted(gate.scores.items(), key=lambda pair: -pair[1])
    listed = ", ".join(f"{name} {score:.3f}" for name, score in scores)
    verdict = "passed the gate" if gate.served == gate.model else f"did not beat its floor, so {gate.served} is served"
    return f"{gate.metric}: {listed}; {gate.model} {verdict}"


def train_recommend(
    store: FeatureStore, settings: Settings, config: Config, timeline: Timeline, *, out: Path, say: Say
) -> RecommendCard:
    """Retrieval on the early orders, the ranker on later ones, retrieval again on both; then index, export, gate."""
    device, seed = choose_device(), config.seed
    events, later = data.read_events(settings, split=timeline.split)
    orders = data.orders_of(events)
    early = orders.rows(orders.times < timeline.ranker_start)
    late = orders.rows(orders.times >= timeline.ranker_start).latest(config.ranker.max_orders)
    if not len(early) or not len(late):
        raise NoDataError(
            "too little history: orders are needed both before and within the ranker's last 60 days; what was imported "
            "counts once `headrace features` has run"
        )

    catalogue = data.build_catalogue(store, events, neighbours_as_of=timeline.ranker_start)
    early_queries = data.queries_of(early, data.states_from_feast(store, early), catalogue)
    late_queries = data.queries_of(late, data.states_from_feast(store, late), catalogue)
    learn, check = by_time(early_queries, config.validation_share)
    first = fit_retrieval(catalogue, learn, check, config.retrieval, device=device, seed=seed, label="two-tower 1/2")
    say(f"two-tower: {len(learn):,} orders, {first.epochs} epochs, validation recall@100 {first.recall:.3f}")

    catalogue = replace(catalogue, vectors=first.vectors)
    days = data.ItemDays(store, catalogue, later, timeline)
    drawn = draw_all(late_queries, catalogue, days, first, per_source=config.per_source, label="candidates")
    learn_drawn, check_drawn = by_time(drawn, config.validation_share)
    ranking = fit_ranker(
        learn_drawn, check_drawn, items=len(catalogue.ids), config=config.ranker, device=device, seed=seed
    )
    say(f"ranker: {len(learn_drawn):,} orders, {ranking.epochs} epochs, validation loss {ranking.loss:.4f}")

    # The released tower has seen everything before the split, for as long as the first one needed.
    longer = replace(config.retrieval, epochs=first.epochs)
    fitted = fit_retrieval(
        catalogue, early_queries + late_queries, [], longer, device=device, seed=seed, label="two-tower 2/2"
    )
    catalogue = data.build_catalogue(store, events, neighbours_as_of=timeline.split, vectors=fitted.vectors)
    index, kind = build_index(catalogue.vectors)
    days.prepare(np.array([timeline.split]))
    _write_model(out, catalogue, days.at(timeline.split), index, fitted, ranking.model)

    held_out = data.orders_of(later).evenly(config.gate_orders)
    states = data.states_held_back(store, held_out, later, split=timeline.split)
    queries = data.queries_of(held_out, states, catalogue)
    drawn = draw_all(queries, catalogue, days, fitted, per_source=config.per_source, label="gate")
    gate = judge(queries, drawn, _scorer(out / RANKER), model="ranker", k=config.list_length, items=len(catalogue.ids))
    say(f"candidates hold {candidate_recall(queries, drawn):.1%} of what the {len(queries):,} held-out orders bought")
    vectors = fitted.user_vectors([query.who for query in queries])
    return RecommendCard(
        feature_service=views.USERS,
        gate=gate,
        index_kind=kind,
        index_recall=measure_recall(index, catalogue.vectors, vectors[vectors.any(axis=1)]),
        candidate_features=CANDIDATE_FEATURES,
        catalogue_items=len(catalogue.ids),
        references=references(np.concatenate([one.candidates.features for one in learn_drawn]), CANDIDATE_FEATURES),
    )


def by_time(rows: list[T], validation_share: float) -> tuple[list[T], list[T]]:
    """The earlier and the latest part of `rows`, which are in order of time."""
    cut = len(rows) - max(1, int(len(rows) * validation_share))
    return rows[:cut], rows[cut:]


def _write_model(
    out: Path,
    catalogue: Catalogue,
    windows: NDArray[np.float32],
    index: faiss.Index,
    fitted: Retrieval,
    ranker: PlainRanker,
) -> None:
    rows = min(3, len(catalogue.ids))
    export(
        fitted.user_tower,
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
        pa.table({"item_id": list(catalogue.ids), "title": list(catalogue.titles), "price": catalogue.prices}),
        out / CATALOGUE,
    )
    arrays = {
        "vectors": catalogue.vectors,
        "neighbours": catalogue.neighbours,
        "similarities": catalogue.similarities,
        "windows": windows,
    }
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, out / ARRAYS)


def _scorer(ranker: Path) -> Callable[[Candidates], NDArray[np.float32]]:
    session = open_onnx(ranker)
    return lambda candidates: np.asarray(
        session.run(None, {"features": candidates.features, "items": candidates.items})[0], dtype=np.float32
    )


def train_fraud_if_any(settings: Settings, config: Config, *, out: Path, say: Say) -> FraudCard | None:
    """The fraud detector, where there are transactions to learn from."""
    if not any((settings.offline_dir / views.TRANSACTION_FEATURES).glob("*.parquet")):
        say("fraud: no transactions in the offline store, so this release has no fraud model")
        return None
    return train_fraud(config.fraud, examples=load_examples(settings), out=out, seed=config.seed)


def _record_run(runs: Path, config: Config, manifest: Manifest, *, seconds: float) -> None:
    """What was run and what came of it, one JSON file a run."""
    runs.mkdir(parents=True, exist_ok=True)
    record = {"config": asdict(config), "seconds": round(seconds, 1), "manifest": manifest.model_dump(mode="json")}
    (runs / f"{manifest.version}.json").write_text(json.dumps(record, indent=2))
