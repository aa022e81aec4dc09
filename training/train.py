"""`headrace train`: fits the models, evaluates them and publishes a release. The steps stand in the order they run."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.contract.drift import reference_distributions
from features.contract.release import RANKER, FraudModelCard, GateResult, Manifest, RecommendModelCard
from features.contract.timestamps import from_milliseconds
from features.history.timeline import NoDataError, Timeline, read_timeline
from features.recommender.candidates import CANDIDATE_FEATURES
from features.recommender.catalogue import Catalogue
from features.store import views
from features.store.feast_import import FeatureStore
from features.store.feature_store import open_store
from infra.settings import Settings
from training.configs import Config, RankerConfig, RetrievalConfig
from training.core.sharding import choose_device, is_leader, process_group
from training.core.trainer import LearningCurve, RunIdentity, RunPaths
from training.fraud.detector import load_examples, train_fraud
from training.recommender import examples
from training.recommender.ranker import FittedRanker, fit_ranker, ranking_examples
from training.recommender.two_tower import FittedTwoTower, fit_two_tower
from training.recommender.visits import visits_from_events
from training.release import publish
from training.release.gate import candidate_recall, evaluate
from training.release.index import build_index, measure_recall
from training.release.recommender_files import open_ranker, write_recommender
from training.search import Search, Try, suggest_ranker, suggest_retrieval

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
    """Trains everything that the data allows, publishes the release and returns its manifest.

    wait: waits until a feature job has made the tables to learn from. search_seconds: time to search for settings
    better than the configuration's, half for the two-tower and half for the ranker.

    Under `torchrun` every process calls it: the recommenders' models are fitted together, one process does the rest,
    and the others return None. A killed run resumes from its last checkpoints.
    Raises NoDataError when there is nothing to learn from.
    """
    while wait and not settings.tables_status.exists():
        time.sleep(TABLES_PAUSE_SECONDS)
    version = now.strftime("%Y%m%dT%H%M%SZ")
    store = open_store(settings)
    started = time.monotonic()
    with process_group(choose_device()):
        timeline = read_timeline(settings)
        paths = RunPaths(settings.runs_dir / "unfinished", settings.runs_dir / version, _identity(config, timeline))
        leader_say = say if is_leader() else _silent
        journal = paths.checkpoints / "search.jsonl"
        search = Search(search_seconds / 2, config.seed, journal, leader_say) if search_seconds else None
        models = fit_recommenders(store, settings, config, timeline, paths=paths, say=leader_say, search=search)
        if not is_leader():
            return None
    config = models.config
    building = publish.begin(settings.releases_dir, version)
    recommend = evaluate_recommenders(models, config, out=building, say=say)
    fraud = train_fraud_if_any(settings, config, out=building, say=say)
    for name, card in (("recommend", recommend), ("fraud", fraud)):
        if card is not None:
            say(f"{name}: {_gate_summary(card.gate)}")
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
    shutil.rmtree(paths.checkpoints, ignore_errors=True)
    return manifest


def _silent(line: str) -> None:
    """Ignores the output of a process that is not the leader."""


def _identity(config: Config, timeline: Timeline) -> RunIdentity:
    """Returns configuration and timeline as they read back from JSON."""
    identity: dict[str, Any] = json.loads(json.dumps({"config": asdict(config), "timeline": asdict(timeline)}))
    return identity


def _gate_summary(gate: GateResult) -> str:
    """Returns the result of the gate in one line."""
    ordered = sorted(gate.scores.items(), key=lambda pair: -pair[1])
    scores = ", ".join(f"{name} {score:.3f}" for name, score in ordered)
    passed = gate.served == gate.model
    verdict = "passed the gate" if passed else f"did not beat its best baseline, so {gate.served} is served"
    return f"{gate.metric}: {scores}; {gate.model} {verdict}"


def _epochs(count: int) -> str:
    return f"{count} epoch" if count == 1 else f"{count} epochs"


@dataclass(frozen=True, slots=True)
class Recommenders:
    """The fitted models, and what their evaluation and release need."""

    config: Config
    """The configuration of the run, with the settings that a search chose."""
    store: FeatureStore
    timeline: Timeline
    catalogue: Catalogue
    later: pd.DataFrame
    """Shop events after the split."""
    item_windows: examples.ItemWindowsByDay
    two_tower: FittedTwoTower
    ranker: FittedRanker
    ranker_examples: list[examples.RankingExample]
    """What the ranker was trained on."""
    curves: dict[str, LearningCurve]
    """By label of the fit."""


def fit_recommenders(
    store: FeatureStore,
    settings: Settings,
    config: Config,
    timeline: Timeline,
    *,
    paths: RunPaths,
    say: Say,
    search: Search | None = None,
) -> Recommenders:
    """Fits the two-tower on the early visits, the ranker on later ones, and then the two-tower on both."""
    device, seed = choose_device(), config.seed
    events, later = examples.read_events(settings, split=timeline.split)
    visits = visits_from_events(events)
    early = visits.rows(visits.times < timeline.ranker_start).thinned(config.retrieval.max_visits_without_purchase)
    late = visits.rows(visits.times >= timeline.ranker_start).latest(config.ranker.max_visits)
    if not early.buying.any() or not len(late):
        raise NoDataError(
            "too little history: purchases are needed both before the ranker's last 60 days and within them; imported "
            "events count once `headrace features` has run"
        )

    catalogue = examples.build_catalogue(store, events, neighbours_as_of=timeline.ranker_start)
    early_queries = examples.retrieval_examples(early, examples.histories_from_feast(store, early), catalogue)
    late_queries = examples.retrieval_examples(late, examples.histories_from_feast(store, late), catalogue)
    tower_training, tower_validation = examples.split_at_purchases(early_queries, config.validation_share)

    def fit_first_tower(config: RetrievalConfig, *, paths: RunPaths | None = None) -> FittedTwoTower:
        return fit_two_tower(
            catalogue, tower_training, tower_validation, config, device=device, seed=seed, label="two-tower 1/2",
            paths=paths,
        )  # fmt: skip

    if search:
        retrieval_config = search.best(
            config.retrieval, suggest=suggest_retrieval, value=lambda tried: fit_first_tower(tried).recall,
            label="two-tower", metric="validation recall@100", identity=paths.identity,
        )  # fmt: skip
        config = replace(config, retrieval=retrieval_config)
        paths = replace(paths, identity=_identity(config, timeline))
    first_tower = fit_first_tower(config.retrieval, paths=paths)
    say(
        f"two-tower: {len(tower_training):,} visits, {_epochs(first_tower.curve.best_epoch)}, "
        f"validation recall@100 {first_tower.recall:.3f}"
    )

    catalogue = replace(catalogue, vectors=first_tower.vectors)
    item_windows = examples.ItemWindowsByDay(store, catalogue, later, timeline)
    ranker_examples = ranking_examples(
        late_queries, catalogue, item_windows, first_tower, per_source=config.per_source, label="candidates"
    )
    ranker_training, ranker_validation = examples.split_latest(ranker_examples, config.validation_share)

    def fit_on_candidates(config: RankerConfig, *, paths: RunPaths | None = None) -> FittedRanker:
        return fit_ranker(
            ranker_training, ranker_validation, items=len(catalogue.ids), config=config, device=device, seed=seed,
            paths=paths,
        )  # fmt: skip

    if search:
        ranker_config = search.best(
            config.ranker, suggest=suggest_ranker, value=lambda tried: -fit_on_candidates(tried).curve.best,
            label="ranker", metric="validation ndcg@20", identity=paths.identity,
        )  # fmt: skip
        config = replace(config, ranker=ranker_config)
        paths = replace(paths, identity=_identity(config, timeline))
    ranker = fit_on_candidates(config.ranker, paths=paths)
    say(
        f"ranker: {len(ranker_training):,} visits, {', '.join(ranker.heads)}, {_epochs(ranker.curve.best_epoch)}, "
        f"validation ndcg@20 {-ranker.curve.best:.3f}"
    )

    # The released tower has learnt from everything before the split: it starts from the first and sees all visits.
    refit_config = replace(config.retrieval, epochs=config.retrieval.refit_epochs)
    two_tower = fit_two_tower(
        catalogue, early_queries + late_queries, [], refit_config, device=device, seed=seed, label="two-tower 2/2",
        paths=paths, initial=first_tower,
    )  # fmt: skip
    catalogue = examples.build_catalogue(store, events, neighbours_as_of=timeline.split, vectors=two_tower.vectors)
    curves = {"two-tower 1/2": first_tower.curve, "ranker": ranker.curve, "two-tower 2/2": two_tower.curve}
    return Recommenders(
        config, store, timeline, catalogue, later, item_windows, two_tower, ranker, ranker_training, curves
    )


def evaluate_recommenders(models: Recommenders, config: Config, *, out: Path, say: Say) -> RecommendModelCard:
    """Writes index and models into the folder `out`, and runs the gate with those files on the held-out visits."""
    catalogue, item_windows, two_tower = models.catalogue, models.item_windows, models.two_tower
    split = models.timeline.split
    index, index_kind = build_index(catalogue.vectors)
    item_windows.prepare(np.array([split]))
    write_recommender(
        out, catalogue, item_windows.at(split), index, user_tower=two_tower.user_tower, ranker=models.ranker.model
    )

    held_out = visits_from_events(models.later)
    held_out = held_out.rows(held_out.buying).spread_evenly(config.gate_visits)
    histories = examples.histories_after_split(models.store, held_out, models.later, split=split)
    queries = examples.retrieval_examples(held_out, histories, catalogue)
    gate_examples = ranking_examples(
        queries, catalogue, item_windows, two_tower, per_source=config.per_source, label="gate"
    )
    gate = evaluate(
        queries, gate_examples, open_ranker(out / RANKER), model="ranker", k=config.list_length,
        items=len(catalogue.ids),
    )  # fmt: skip
    recall = 100 * candidate_recall(queries, gate_examples)
    say(f"candidate recall: {recall:.1f} % of the purchases of {len(queries):,} held-out visits")
    vectors = two_tower.user_vectors([query.visitor for query in queries])
    ranker_features = np.concatenate([example.candidates.features for example in models.ranker_examples])
    return RecommendModelCard(
        feature_service=views.USER_SERVICE,
        gate=gate,
        index_kind=index_kind,
        index_recall=measure_recall(index, catalogue.vectors, vectors[vectors.any(axis=1)]),
        candidate_features=CANDIDATE_FEATURES,
        heads=models.ranker.heads,
        catalogue_items=len(catalogue.ids),
        references=reference_distributions(ranker_features, CANDIDATE_FEATURES),
    )


def train_fraud_if_any(settings: Settings, config: Config, *, out: Path, say: Say) -> FraudModelCard | None:
    """Trains the fraud detector, or returns None where there are no transactions to learn from."""
    if not any((settings.offline_dir / views.TRANSACTION_FEATURES).glob("*.parquet")):
        say("fraud: no transactions in the offline store, so this release has no fraud model")
        return None
    return train_fraud(config.fraud, examples=load_examples(settings), out=out, seed=config.seed)


def _record_run(runs: Path, manifest: Manifest, models: Recommenders, tries: list[Try], *, seconds: float) -> None:
    """Writes settings and results of the run as JSON; `headrace train --settings` reads the settings again."""
    runs.mkdir(parents=True, exist_ok=True)
    record = {
        "config": asdict(models.config),
        "search": tries,
        "seconds": round(seconds, 1),
        "curves": {name: asdict(curve) for name, curve in models.curves.items()},
        "manifest": manifest.model_dump(mode="json"),
    }
    (runs / f"{manifest.version}.json").write_text(json.dumps(record, indent=2))
