"""Builds a simulated shop to put under load: a release with the real kinds of files, and an online store of histories.

It imitates no real behaviour beyond its skew: item vectors lie in clusters, sales follow Zipf, and visitors are as
unequal as those of a shop. The models have the real architectures with random weights, exported as training exports
them: they cost what trained ones cost, and their order means nothing. A shop is built once for each size, then kept.
"""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from features.contract import columns
from features.contract.release import (
    ARRAYS,
    CATALOGUE,
    INDEX,
    RANKER,
    USER_TOWER,
    GateResult,
    Manifest,
    RecommendModelCard,
    current_version,
    read_release,
)
from features.contract.timestamps import DAY
from features.history import arrays
from features.history.arrays import History, to_arrow
from features.recommender.candidates import CANDIDATE_FEATURES, RECENT_ITEMS
from features.recommender.catalogue import ITEM_WINDOWS
from features.store import views
from features.store.feature_store import Store, open_store, write_online
from infra.settings import Settings
from training.configs import RankerConfig
from training.core.export import export
from training.models.ranker import Dense, PlainRanker
from training.models.two_tower import PooledTower, Tower
from training.release import publish
from training.release.index import build_index, measure_recall

USERS = 5_000
CATEGORIES = 40
NEIGHBOURS = 50
SOLD_LATELY = 30_000
"""Most items that sold in the last month; only these have a history in the online store."""
SEED = 7


def build(settings: Settings, *, items: int, width: int, say: Callable[[str], None]) -> None:
    """Builds the release and the online store below settings.data_dir, unless they are there already."""
    done = settings.data_dir / "world.json"
    shape = {"items": items, "width": width, "features": list(CANDIDATE_FEATURES), "windows": list(ITEM_WINDOWS)}
    if done.exists() and json.loads(done.read_text()) == shape and current_version(settings.releases_dir):
        return
    started = time.monotonic()
    rng = np.random.default_rng(SEED)
    names = [f"item-{number:07d}" for number in range(items)]
    write_release(settings.releases_dir, names, width, rng)
    store = open_store(settings)
    fill_items(store, names, rng)
    fill_users(store, names, rng)
    done.write_text(json.dumps(shape))
    say(f"built {items:,} items x {width} and {USERS:,} visitors in {time.monotonic() - started:.0f} s")


def write_release(releases: Path, names: list[str], width: int, rng: np.random.Generator) -> None:
    """Publishes a release of these items, whose vectors have length `width`."""
    count = len(names)
    out = publish.begin(releases, "bench")
    vectors, cluster = clustered(count, width, rng)
    index, kind = build_index(vectors)
    queries = vectors[rng.integers(0, count, min(200, count))] if count else vectors
    queries = queries + rng.normal(scale=0.3 / np.sqrt(width), size=queries.shape).astype(np.float32)
    faiss.write_index(index, str(out / INDEX))
    pq.write_table(
        pa.table(
            {
                "item_id": names,
                "title": [f"Thing number {number} of line {line}" for number, line in enumerate(cluster)],
                "price": np.round(rng.lognormal(2.5, 1.0, count), 2).astype(np.float32),
                "category": [f"line-{line % CATEGORIES}" for line in cluster],
            }
        ),
        out / CATALOGUE,
    )
    neighbours = min(NEIGHBOURS, max(1, count))
    stored = {
        "vectors": vectors,
        "neighbours": rng.integers(0, max(1, count), (count, neighbours)).astype(np.int32),
        "similarities": np.sort(rng.random((count, neighbours)).astype(np.float32), axis=1)[:, ::-1],
        "windows": rng.gamma(0.5, 4, (count, len(ITEM_WINDOWS))).astype(np.float32),
    }
    save_file({name: np.ascontiguousarray(array) for name, array in stored.items()}, out / ARRAYS)
    write_models(out, vectors, width)
    moment = datetime(2026, 11, 1, tzinfo=UTC)
    gate = GateResult(
        metric="none", scores={"ranker": 1.0, "popularity": 0.0}, model="ranker", best_baseline="popularity",
        served="ranker", metrics={},
    )  # fmt: skip
    card = RecommendModelCard(
        feature_service=views.USER_SERVICE, gate=gate, index_kind=kind,
        index_recall=measure_recall(index, vectors, queries), candidate_features=CANDIDATE_FEATURES,
        catalogue_items=count,
    )  # fmt: skip
    manifest = Manifest(
        version="bench", created_time=moment, data_start=moment, data_end=moment, packages={}, seed=SEED,
        recommend=card, files={},
    )  # fmt: skip
    publish.publish(out, manifest)


def clustered(count: int, width: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns unit vectors around 400 centres, float32 [count, width], and the centre of each, int64 [count]."""
    centres = rng.normal(size=(400, width)).astype(np.float32)
    cluster = rng.integers(0, len(centres), count)
    vectors = centres[cluster] + 0.7 * rng.standard_normal((count, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), cluster


def write_models(out: Path, vectors: NDArray[np.float32], width: int) -> None:
    """Exports user tower and ranker with random weights."""
    torch.manual_seed(SEED)
    rows = max(1, min(3, len(vectors)))
    table = torch.from_numpy(vectors) if len(vectors) else torch.zeros((1, width))
    lists = {"items": torch.zeros((rows, RECENT_ITEMS), dtype=torch.long), "weights": torch.rand((rows, RECENT_ITEMS))}
    export(PooledTower(table, Tower(width, 0.0)), out / USER_TOWER, lists, output="vector")
    config, features = RankerConfig(), len(CANDIDATE_FEATURES)
    dense = Dense(
        linear=torch.randn(1, features) * 0.3, bias=torch.zeros(1), crossed=torch.arange(features),
        mean=torch.zeros(features), std=torch.ones(features), embedding=config.embedding, hidden=config.hidden,
        crosses=config.crosses, rank=config.cross_rank, dropout=0.0, heads={"purchase": 1.0},
    )  # fmt: skip
    ranker = PlainRanker(torch.randn((max(1, len(vectors)), config.embedding)) * 0.1, dense)
    inputs = {"features": torch.rand((rows, features)) * 10, "items": torch.zeros(rows, dtype=torch.long)}
    export(ranker, out / RANKER, inputs, output="score")


def _store(store: Store, view: str, key: str, names: list[str], rows: History) -> None:
    now = datetime.now(UTC)
    table = pa.table(
        {
            key: pa.array(names, pa.string()),
            **to_arrow(rows),
            columns.EVENT_TIMESTAMP: pa.array([now] * len(names), pa.timestamp("us", tz="UTC")),
            columns.CREATED_TIMESTAMP: pa.array([now] * len(names), pa.timestamp("us", tz="UTC")),
        }
    )
    write_online(store, view, table)


def fill_items(store: Store, names: list[str], rng: np.random.Generator) -> None:
    """Writes the daily sales of items that sold in the last month: half of the items, SOLD_LATELY at most."""
    sold = rng.permutation(len(names))[: min(SOLD_LATELY, (len(names) + 1) // 2)]
    lengths = np.minimum(rng.zipf(1.4, len(sold)), arrays.ITEM_CAP)
    today = int(time.time() * 1000) // DAY * DAY
    days = np.concatenate([today - DAY * np.arange(length)[::-1] for length in lengths] or [np.empty(0, np.int64)])
    orders = rng.integers(1, 20, len(days)).astype(np.float64)
    entries = {
        columns.TIMES: days.astype(np.int64), columns.ORDERS: orders, columns.UNITS: orders * 2,
        columns.REVENUE: orders * 9.5, columns.RETURNS: np.zeros(len(days)),
    }  # fmt: skip
    rows = History(np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), entries)
    if len(sold):
        _store(store, views.ITEM_HISTORY, columns.ITEM, [names[item] for item in sold], rows)


def fill_users(store: Store, names: list[str], rng: np.random.Generator) -> None:
    """Writes half a year of visits of each user: some have a handful of entries, some hundreds."""
    lengths = np.clip(rng.lognormal(3.6, 0.9, USERS), 1, 400).astype(np.int64) if names else np.zeros(USERS, np.int64)
    total, now = int(lengths.sum()), int(time.time() * 1000)
    owner = np.repeat(np.arange(USERS), lengths)
    visit = rng.integers(0, 1 + lengths[owner] // 6)
    times = now - DAY * 180 + (rng.random(USERS)[owner] * DAY).astype(np.int64) + visit * DAY * 2
    order = np.lexsort((times, owner))
    popular = np.minimum(rng.zipf(1.3, total) - 1, max(0, len(names) - 1))
    chosen = np.where(rng.random(total) < 0.5, popular, rng.integers(0, max(1, len(names)), total))
    entries = {
        columns.TIMES: np.minimum(times[order], now),
        columns.ITEMS: np.array([names[item] for item in chosen], dtype=object),
        columns.EVENT_TYPES: rng.choice(
            [columns.EVENT_TYPE_CODES["view"], columns.EVENT_TYPE_CODES["purchase"]], total
        ),
        columns.PRICES: np.round(rng.lognormal(2.5, 1.0, total), 2),
        columns.QUANTITIES: np.ones(total),
        columns.EVENT_HASHES: np.arange(total),
    }
    rows = History(np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), entries)
    _store(store, views.USER_HISTORY, columns.USER, [f"user-{number}" for number in range(USERS)], rows)


def index_recall(settings: Settings) -> tuple[str, float]:
    """Returns kind and recall@100 of the release's index, from its manifest."""
    _, manifest = read_release(settings.releases_dir, current_version(settings.releases_dir) or "")
    assert manifest.recommend is not None
    return manifest.recommend.index_kind, manifest.recommend.index_recall
