"""A real Redis that dies under the feature job, and loses what it had not synced: in the end nothing is missing."""

import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from features.contract import columns
from features.contract.timestamps import HOUR
from features.fraud import velocity
from features.store import feature_store, recovery, views
from features.store.online import OnlineStoreError
from features.store.recovery import MARK_FILE, ForeignStoreError, OnlineStoreGuard, refill
from infra.local import redis_server
from infra.local.ports import free_port
from infra.local.redis_server import RedisServer
from infra.settings import Settings
from streaming import job, tables
from streaming.job import FeatureJob
from tests.streaming.test_histories import LABEL, PAYMENT, SHOP, START, bought, paid, table, whole

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server"),
]

USERS = [f"u{number}" for number in range(40)]
CARDS, TERMINALS = [f"c{number}" for number in range(30)], [f"t{number}" for number in range(10)]
MOST_LOSSES = 12
"""A busy machine refills the store more slowly than it can be lost."""
Batch = tuple[pa.Table, pa.Table, pa.Table]


def batches(count: int, *, seed: int) -> list[Batch]:
    """Micro-batches of shop events, payments and labels; some events are late, some come twice."""
    rng = random.Random(seed)
    batches, shop, payments = [], [], []
    for batch in range(count):
        new = [
            bought(f"e{batch}-{number}", batch + rng.choice([0.0, 0.5, -3.0]) + number / 1000, user=rng.choice(USERS))
            for number in range(60)
        ]
        pay = [
            paid(f"p{batch}-{number}", batch + number / 1000, card=rng.choice(CARDS), terminal=rng.choice(TERMINALS))
            for number in range(20)
        ]
        shop += new
        payments += pay
        known = rng.choice(payments)
        label = {"transaction_id": known["event_id"], "event_time": START + batch * HOUR, "fraud": True,
                 "terminal_id": known["terminal_id"], "transaction_time": known["event_time"]}  # fmt: skip
        again = rng.sample(shop, min(len(shop), 5))
        known_labels = whole("labels", table(LABEL, label))
        batches.append((whole("shop_events", table(SHOP, *new, *again)), table(PAYMENT, *pay), known_labels))
    return batches


def run(features: FeatureJob, work: list[Batch], *, first: int = 0) -> None:
    impressions = tables.SCHEMAS["impressions"].empty_table()
    for number, (shop, payments, labels) in enumerate(work, start=first):
        features.process(shop, payments, labels, impressions, batch=f"batch-{number:06d}")


def state(settings: Settings, *, hours: int) -> dict[str, Any]:
    """Everything that readers see: online rows now, histories and features as of then."""
    feast = feature_store.open_store(settings)
    moments = pd.to_datetime([START + hour * HOUR for hour in (hours // 3, hours // 2, hours)], unit="ms", utc=True)
    frame = pd.DataFrame(
        {columns.USER: np.repeat(USERS, len(moments)), columns.EVENT_TIMESTAMP: np.tile(moments, len(USERS))}
    )
    rows = ds.dataset(settings.offline_dir / views.TRANSACTION_FEATURES).to_table().to_pandas()
    rows = rows.sort_values(columns.CREATED_TIMESTAMP).drop_duplicates(columns.TRANSACTION, keep="last")
    return {
        "users": feature_store.online_rows(feast, views.USER_HISTORY, USERS),
        "cards": feature_store.online_rows(feast, views.CARD_HISTORY, CARDS),
        "terminals": feature_store.online_rows(feast, views.TERMINAL_HISTORY, TERMINALS),
        "then": feature_store.historical(feast, views.USER_SERVICE, frame, before=True).to_pylist(),
        "features": rows.set_index(columns.TRANSACTION)[list(velocity.FEATURES)].sort_index().to_dict(),
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(Settings(data_dir=tmp_path / "redis", redis_port=free_port())) as server:
        yield server


@pytest.fixture
def settings(server: RedisServer, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "job", redis_url=redis_server.url(server.settings))


@pytest.fixture
def undisturbed(tmp_path: Path) -> Callable[[list[Batch]], dict[str, Any]]:
    """The state that the same work leads to where nothing fails."""

    def after(work: list[Batch]) -> dict[str, Any]:
        calm = Settings(data_dir=tmp_path / "calm")
        run(FeatureJob(calm), work)
        return state(calm, hours=len(work))

    return after


@pytest.fixture
def refills(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each refill wrote."""
    counts: list[int] = []
    monkeypatch.setattr(recovery, "refill", lambda feast: counts.append(refill(feast)))
    monkeypatch.setattr(job, "ONLINE_RETRY_SECONDS", 0.02)
    return counts


def lose(server: RedisServer, share: float) -> None:
    """Cut the end off what Redis has written down, as a power failure does before the next sync."""
    server.kill()
    (newest,) = (server.settings.data_dir / "redis" / "appendonlydir").glob("*.incr.aof")
    size = newest.stat().st_size
    with newest.open("r+b") as file:
        file.truncate(int(size * (1 - share)))
    server.start()


def test_killed_again_and_again_under_load_it_ends_as_if_nothing_had_been(
    server: RedisServer, settings: Settings, refills: list[int], undisturbed: Callable[[list[Batch]], dict[str, Any]]
) -> None:
    work = batches(60, seed=3)
    done, rng = threading.Event(), random.Random(5)
    losses = 0

    def trouble() -> None:
        nonlocal losses
        while losses < MOST_LOSSES and not done.wait(rng.uniform(0.1, 0.6)):
            lose(server, rng.choice([0.0, 0.01, 0.05, 0.3]))
            losses += 1

    thread = threading.Thread(target=trouble)
    thread.start()
    try:
        run(FeatureJob(settings), work)
    finally:
        done.set()
        thread.join(60)
    assert losses >= 3
    assert refills, "the test lost nothing"
    assert state(settings, hours=len(work)) == undisturbed(work)


@pytest.mark.parametrize("when", ["between batches", "while the job is down"])
@pytest.mark.parametrize("share", [0.02, 1.0])
def test_a_loss_is_noticed_before_it_is_built_upon(
    server: RedisServer, settings: Settings, refills: list[int], undisturbed: Callable[[list[Batch]], dict[str, Any]],
    share: float, when: str,
) -> None:  # fmt: skip
    work = batches(12, seed=1)
    features = FeatureJob(settings)
    run(features, work[:8])
    assert not refills
    lose(server, share)
    run(features if when == "between batches" else FeatureJob(settings), work[8:], first=8)
    assert len(refills) == 1
    assert state(settings, hours=len(work)) == undisturbed(work)


@pytest.mark.parametrize("call", ["read", "write"])
def test_a_loss_in_the_middle_of_a_batch_is_no_loss(
    server: RedisServer, settings: Settings, refills: list[int], undisturbed: Callable[[list[Batch]], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch, call: str,
) -> None:  # fmt: skip
    work = batches(8, seed=2)
    features = FeatureJob(settings)
    run(features, work[:4])
    method, times, lock = getattr(features._guard._store.online, call), 0, threading.Lock()

    def disturbed(*arguments: Any, **options: Any) -> Any:
        nonlocal times
        if call == "write":
            method(*arguments, **options)
        with lock:  # users and payments are folded in two threads
            times += 1
            if times in (1, 5):
                lose(server, 0.2)
        return method(*arguments, **options) if call == "read" else None

    monkeypatch.setattr(features._guard._store.online, call, disturbed)
    run(features, work[4:], first=4)
    assert len(refills) >= 2
    assert state(settings, hours=len(work)) == undisturbed(work)


def test_a_batch_of_which_a_part_was_written_keeps_its_offline_rows(
    settings: Settings, refills: list[int], undisturbed: Callable[[list[Batch]], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Redis writes row by row: a batch that is cut off may have written some of its rows and not the others."""
    work = batches(6, seed=4)
    features = FeatureJob(settings)
    online = features._guard._store.online
    write, failures = online.write, 0

    def half(view: str, rows: pa.Table) -> None:
        nonlocal failures
        if failures < 9 and rows.num_rows > 1:
            failures += 1
            write(view, rows.slice(0, rows.num_rows // 2))
            raise OnlineStoreError("cut off")
        write(view, rows)

    monkeypatch.setattr(online, "write", half)
    run(features, work)
    assert failures == 9
    assert state(settings, hours=len(work)) == undisturbed(work)


def test_a_clean_restart_refills_nothing_but_renews_the_items(
    server: RedisServer, settings: Settings, refills: list[int]
) -> None:
    work = batches(4, seed=1)
    features = FeatureJob(settings)
    run(features, work[:2])
    server.kill()
    server.start()
    guard = OnlineStoreGuard(feature_store.open_store(settings), settings)
    assert guard.check()  # items, which are written beside the micro-batches, may be behind
    run(features, work[2:], first=2)
    assert not refills


def test_another_store_is_filled_from_the_offline_tables(
    settings: Settings, tmp_path: Path, undisturbed: Callable[[list[Batch]], dict[str, Any]]
) -> None:
    """From SQLite to Redis by the setting alone, in the middle of the work."""
    work = batches(6, seed=6)
    run(FeatureJob(Settings(data_dir=settings.data_dir)), work[:4])
    run(FeatureJob(settings), work[4:], first=4)
    assert state(settings, hours=len(work)) == undisturbed(work)


def test_the_store_of_another_data_directory_is_not_touched(settings: Settings, tmp_path: Path) -> None:
    (batch,) = batches(1, seed=1)
    run(FeatureJob(settings), [batch])
    other = Settings(data_dir=tmp_path / "other", redis_url=settings.redis_url)
    with pytest.raises(ForeignStoreError, match="another data directory; name another database"):
        run(FeatureJob(other), [batch])
    assert json.loads((settings.feast_dir / MARK_FILE).read_text())["mark"]


def test_the_verb_fills_an_emptied_store(server: RedisServer, settings: Settings) -> None:
    work = batches(3, seed=1)
    run(FeatureJob(settings), work)
    before = state(settings, hours=3)
    lose(server, 1.0)
    assert (
        feature_store.online_rows(feature_store.open_store(settings), views.USER_HISTORY, ["u1"])[0][columns.TIMES]
        is None
    )
    said: list[str] = []
    job.refill_online(settings, say=said.append)
    assert state(settings, hours=3) == before
    assert any(views.USER_HISTORY in line for line in said)
    started = time.monotonic()
    with job._sole_job(settings), pytest.raises(job.JobRunningError):
        job.refill_online(settings, say=said.append)
    assert time.monotonic() - started < 5
