"""`headrace train`: learn, judge, publish. The whole run from top to bottom, in the order in which it happens."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from features.contract.drift import reference_distributions
from features.contract.release import (
    ARRAYS,
    CATALOGUE,
    INDEX,
    RANKER,
    USER_TOWER,
    FraudModelCard,
    GateResult,
    Manifest,
    RecommendModelCard,
)
from features.contract.timestamps import from_milliseconds
from features.history.timeline import NoDataError, Timeline, read_timeline
from features.recommender.candidates import CANDIDATE_FEATURES, RECENT_ITEMS, Candidates
from features.recommender.catalogue import Catalogue
from features.store import views
from features.store.feast_import import FeatureStore
from features.store.feature_store import open_store
from infra.settings import Settings
from training.configs import Config, RankerConfig, RetrievalConfig
from training.core.export import export, open_onnx
from training.core.sharding import choose_device, is_leader, process_group
from training.core.trainer import RunPaths, TrainingHistory
from training.fraud.detector import load_examples, train_fraud
from training.models.ranker import PlainRanker
from training.recommender import examples
from training.recommender.ranker import FittedRanker, fit_ranker, ranking_examples
from training.recommender.two_tower import FittedTwoTower, fit_retrieval
from training.recommender.visits import visits_of
from training.release import publish
from training.release.gate import candidate_recall, evaluate
from training.release.index import build_index, measure_recall
from training.search import Search, Try, suggest_ranker, suggest_retrieval

T = TypeVar("T")
Say = Callable[[str], None]
TABLES_PAUSE_SECONDS = 0.2
PACKAGES = ("torch", "torchrec", "faiss-cpu", "onnxruntime", "numpy", "feast")


def run(
    settings: Settings,
    config: Config,
    *,
    now: datetime,
    say: Say,
    wait: bool = False,
    search_seconds: float | None = None,
) -> Manifest | None:
    """Train everything the data allows, and publish the release. Returns its manifest.

    wait: first until a feature job has made the tables to learn from. search_seconds: spent, half for the two-tower and
    half for the ranker, on settings that may be better than the configuration's.

    Under `torchrun` every process calls it: the recommenders' models are fitted together, one process does the rest,
    and the others return None. A run that was killed is gone on from where its models were.
    Raises NoDataError when there is nothing to learn from.
    """
    while wait and not settings.tables_status.exists():
        time.sleep(TABLES_PAUSE_SECONDS)
    version = now.strftime("%Y%m%dT%H%M%SZ")
    store = open_store(settings)
    started = time.monotonic()
    with process_group(choose_device()):
        timeline = read_timeline(settings)
        watch = RunPaths(settings.runs_dir / "unfinished", settings.runs_dir / version, _identity(config, timeline))
        told = say if is_leader() else _silent
        journal = watch.checkpoints / "search.jsonl"
        search = Search(search_seconds / 2, config.seed, journal, told) if search_seconds else None
        models = fit_recommenders(store, settings, config, timeline, watch=watch, say=told, search=search)
        if not is_leader():
            return None
    config = models.config
    building = publish.begin(settings.releases_dir, version)
    recommend = judge_recommenders(models, config, out=building, say=say)
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
    _record_run(settings.runs_dir, manifest, models, search.tries if search else [], seconds=time.monotonic() - started)
    shutil.rmtree(watch.checkpoints, ignore_errors=True)
    return manifest


def _silent(line: str) -> None:
    """What a process says that is not the leader."""


def _identity(config: Config, timeline: Timeline) -> dict[str, Any]:
    """What a checkpoint must agree on, as JSON gives it back."""
    identity: dict[str, Any] = json.loads(json.dumps({"config": asdict(config), "timeline": asdict(timeline)}))
    return identity


def _told(gate: GateResult) -> str:
    """The gate in one line."""
    scores = sorted(gate.scores.items(), key=lambda pair: -pair[1])
    listed = ", ".join(f"{name} {score:.3f}" for name, score in scores)
    verdict = "passed the gate" if gate.served == gate.model else f"did not beat its floor, so {gate.served} is served"
    return f"{gate.metric}: {listed}; {gate.model} {verdict}"


@dataclass(frozen=True, slots=True)
class Recommenders:
    """The fitted models, with what they are judged and published by."""

    config: Config
    """With the settings that a search chose."""
    store: FeatureStore
    timeline: Timeline
    catalogue: Catalogue
    later: pd.DataFrame
    """Shop events after the split."""
    days: examples.ItemWindowsByDay
    retrieval: FittedTwoTower
    ranking: FittedRanker
    learned: list[examples.RankingExample]
    """What the ranker learned from."""
    curves: dict[str, TrainingHistory]


def fit_recommenders(
    store: FeatureStore,
    settings: Settings,
    config: Config,
    timeline: Timeline,
    *,
    watch: RunPaths,
    say: Say,
    search: Search | None = None,
) -> Recommenders:
    """Retrieval on the early visits, the ranker on later ones, retrieval again on both."""
    device, seed = choose_device(), config.seed
    events, later = examples.read_events(settings, split=timeline.split)
    visits = visits_of(events)
    early = visits.rows(visits.times < timeline.ranker_start).thinned(config.retrieval.max_visits_without_purchase)
    late = visits.rows(visits.times >= timeline.ranker_start).latest(config.ranker.max_visits)
    if not early.buying.any() or not len(late):
        raise NoDataError(
            "too little history: orders are needed both before and within the ranker's last 60 days; what was imported "
            "counts once `headrace features` has run"
        )

    catalogue = examples.build_catalogue(store, events, neighbours_as_of=timeline.ranker_start)
    early_queries = examples.retrieval_examples(early, examples.histories_from_feast(store, early), catalogue)
    late_queries = examples.retrieval_examples(late, examples.histories_from_feast(store, late), catalogue)
    learn, check = before_purchases(early_queries, config.validation_share)

    def fit_first(tried: RetrievalConfig, *, watch: RunPaths | None = None) -> FittedTwoTower:
        return fit_retrieval(
            catalogue, learn, check, tried, device=device, seed=seed, label="two-tower 1/2", watch=watch
        )

    if search:
        retrieval = search.best(
            config.retrieval, suggest=suggest_retrieval, value=lambda tried: fit_first(tried).recall,
            label="two-tower", metric="validation recall@100", facts=watch.facts,
        )  # fmt: skip
        config = replace(config, retrieval=retrieval)
        watch = replace(watch, facts=_identity(config, timeline))
    first = fit_first(config.retrieval, watch=watch)
    epochs = first.curve.best_epoch
    say(f"two-tower: {len(learn):,} visits, {epochs} epochs, validation recall@100 {first.recall:.3f}")

    catalogue = replace(catalogue, vectors=first.vectors)
    days = examples.ItemWindowsByDay(store, catalogue, later, timeline)
    drawn = ranking_examples(late_queries, catalogue, days, first, per_source=config.per_source, label="candidates")
    learn_drawn, check_drawn = by_time(drawn, config.validation_share)

    def fit_on_drawn(tried: RankerConfig, *, watch: RunPaths | None = None) -> FittedRanker:
        return fit_ranker(
            learn_drawn, check_drawn, items=len(catalogue.ids), config=tried, device=device, seed=seed, watch=watch
        )

    if search:
        ranker = search.best(
            config.ranker, suggest=suggest_ranker, value=lambda tried: -fit_on_drawn(tried).curve.best,
            label="ranker", metric="validation ndcg@20", facts=watch.facts,
        )  # fmt: skip
        config = replace(config, ranker=ranker)
        watch = replace(watch, facts=_identity(config, timeline))
    ranking = fit_on_drawn(config.ranker, watch=watch)
    curve = ranking.curve
    say(
        f"ranker: {len(learn_drawn):,} visits, {', '.join(ranking.heads)}, {curve.best_epoch} epochs, "
        f"validation ndcg@20 {-curve.best:.3f}"
    )

    # The released tower has seen everything before the split: it goes on from the first one, over all visits.
    longer = replace(config.retrieval, epochs=config.retrieval.refit_epochs)
    fitted = fit_retrieval(
        catalogue, early_queries + late_queries, [], longer, device=device, seed=seed, label="two-tower 2/2",
        watch=watch, begin=first,
    )  # fmt: skip
    catalogue = examples.build_catalogue(store, events, neighbours_as_of=timeline.split, vectors=fitted.vectors)
    curves = {"two-tower 1/2": first.curve, "ranker": ranking.curve, "two-tower 2/2": fitted.curve}
    return Recommenders(config, store, timeline, catalogue, later, days, fitted, ranking, learn_drawn, curves)


def judge_recommenders(models: Recommenders, config: Config, *, out: Path, say: Say) -> RecommendModelCard:
    """Index and files into the folder `out`, and the gate over what those files answer on the held-out visits."""
    catalogue, days, fitted, timeline = models.catalogue, models.days, models.retrieval, models.timeline
    index, kind = build_index(catalogue.vectors)
    days.prepare(np.array([timeline.split]))
    _write_model(out, catalogue, days.at(timeline.split), index, fitted, models.ranking.model)

    held_out = visits_of(models.later)
    held_out = held_out.rows(held_out.buying).evenly(config.gate_visits)
    states = examples.histories_held_back(models.store, held_out, models.later, split=timeline.split)
    queries = examples.retrieval_examples(held_out, states, catalogue)
    drawn = ranking_examples(queries, catalogue, days, fitted, per_source=config.per_source, label="gate")
    gate = evaluate(
        queries, drawn, _scorer(out / RANKER), model="ranker", k=config.list_length, items=len(catalogue.ids)
    )
    say(f"candidates hold {candidate_recall(queries, drawn):.1%} of what the {len(queries):,} held-out visits bought")
    vectors = fitted.user_vectors([query.visitor for query in queries])
    return RecommendModelCard(
        feature_service=views.USER_SERVICE,
        gate=gate,
        index_kind=kind,
        index_recall=measure_recall(index, catalogue.vectors, vectors[vectors.any(axis=1)]),
        candidate_features=CANDIDATE_FEATURES,
        heads=models.ranking.heads,
        catalogue_items=len(catalogue.ids),
        references=reference_distributions(
            np.concatenate([one.candidates.features for one in models.learned]), CANDIDATE_FEATURES
        ),
    )


def by_time(rows: list[T], validation_share: float) -> tuple[list[T], list[T]]:
    """The earlier and the latest part of `rows`, which are in order of time."""
    cut = len(rows) - max(1, int(len(rows) * validation_share))
    return rows[:cut], rows[cut:]


def before_purchases(
    queries: list[examples.RetrievalExample], validation_share: float
) -> tuple[list[examples.RetrievalExample], list[examples.RetrievalExample]]:
    """The latest part of the queries that bought, which retrieval is checked by, and after what it learns: all queries,
    whatever they did, before the first of that part. `queries` are in order of time."""
    bought = [place for place, query in enumerate(queries) if len(query.targets)]
    begins = by_time(bought, validation_share)[1][0]
    return queries[:begins], [queries[place] for place in bought if place >= begins]


def _write_model(
    out: Path,
    catalogue: Catalogue,
    windows: NDArray[np.float32],
    index: faiss.Index,
    fitted: FittedTwoTower,
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
        "windows": windows,
    }
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, out / ARRAYS)


def _scorer(ranker: Path) -> Callable[[Candidates], NDArray[np.float32]]:
    session = open_onnx(ranker)
    return lambda candidates: np.asarray(
        session.run(None, {"features": candidates.features, "items": candidates.items})[0], dtype=np.float32
    )


def train_fraud_if_any(settings: Settings, config: Config, *, out: Path, say: Say) -> FraudModelCard | None:
    """The fraud detector, where there are transactions to learn from."""
    if not any((settings.offline_dir / views.TRANSACTION_FEATURES).glob("*.parquet")):
        say("fraud: no transactions in the offline store, so this release has no fraud model")
        return None
    return train_fraud(config.fraud, examples=load_examples(settings), out=out, seed=config.seed)


def _record_run(runs: Path, manifest: Manifest, models: Recommenders, tries: list[Try], *, seconds: float) -> None:
    """What was run and what came of it, one JSON file a run; `headrace train --settings` takes its settings again."""
    runs.mkdir(parents=True, exist_ok=True)
    record = {
        "config": asdict(models.config),
        "search": tries,
        "seconds": round(seconds, 1),
        "curves": {name: asdict(curve) for name, curve in models.curves.items()},
        "manifest": manifest.model_dump(mode="json"),
    }
    (runs / f"{manifest.version}.json").write_text(json.dumps(record, indent=2))
