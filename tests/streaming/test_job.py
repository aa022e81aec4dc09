"""The whole feature job on a small log: what it makes of it, and that doing it again changes nothing."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset as ds
import pytest
from pyspark.sql import SparkSession

from features.contract import columns
from features.contract.events import TOPIC_OF
from features.contract.timestamps import DAY, rfc3339
from features.fraud import velocity
from features.store import feature_store, views
from infra import topics
from infra.log import client
from infra.log.client import EventLog, Position
from infra.log.open import open_log
from infra.settings import Settings
from streaming import job, maintenance
from streaming.job import FeatureJob, JobRunningError, catch_up
from streaming.session import JobError
from streaming.source import RECORD_SCHEMA

pytestmark = pytest.mark.slow

START = 20_000 * DAY
HOUR = DAY // 24


def event(kind: str, event_id: str, hours: float, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "event_id": event_id, "event_time": rfc3339(START + int(hours * HOUR)), **fields}


def bought(event_id: str, hours: float, item: str, *, user: str = "ann") -> dict[str, Any]:
    order = f"{user}-{hours}"
    return event("purchase", event_id, hours, user_id=user, item_id=item, quantity=2, price=1.5, order_id=order)


def paid(event_id: str, hours: float) -> dict[str, Any]:
    return event("transaction", event_id, hours, card_id="c", terminal_id="t", amount=10)


SHOP = [
    event("item", "item:a", 0, item_id="a", title="A"),
    bought("e1", 0, "a"), bought("e2", 0, "b"), bought("e3", 24, "a", user="bob"), bought("e4", 24, "b", user="bob"),
    event("view", "v1", 25, session_id="s", item_id="a"), bought("e5", 48, "c"),
]  # fmt: skip
OTHERS = [
    paid("p1", 0), paid("p2", 1),
    event("label", "l1", 90, transaction_id="p1", fraud=True, terminal_id="t", transaction_time=rfc3339(START)),
    event("impression", "r1", 30, user_id="ann", surface="home", model="m", items=[
        {"item_id": "a", "position": 1, "score": 0.5, "source": "trending", "propensity": 0.5}]),
]  # fmt: skip


def send(log: EventLog, *events: dict[str, Any]) -> None:
    for event in events:
        log.append(TOPIC_OF[event["type"]], [("key", json.dumps(event).encode())])


@pytest.fixture
def run(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> Callable[[Settings], list[str]]:
    """Runs the job to the end of the log in the Spark of the tests; gives what it said."""

    @contextlib.contextmanager
    def session(settings: Settings, app: str) -> Iterator[SparkSession]:
        yield spark

    monkeypatch.setattr(job, "_session", session)
    monkeypatch.setattr(maintenance.co_purchase, "run", lambda *_, **__: 0)  # has its own tests, and takes long

    def run(settings: Settings) -> list[str]:
        said: list[str] = []
        catch_up(settings, say=said.append)
        return said

    return run


def items_at(settings: Settings, *hours: float, user: str = "ann") -> list[list[str] | None]:
    moments = pd.to_datetime([START + int(hour * HOUR) for hour in hours], unit="ms", utc=True)
    frame = pd.DataFrame({columns.USER: [user] * len(hours), columns.EVENT_TIMESTAMP: moments})
    rows = feature_store.historical(feature_store.open_store(settings), views.USER_SERVICE, frame, before=True)
    lists: list[list[str] | None] = rows[f"{views.USER_HISTORY}__{columns.ITEMS}"].to_pylist()
    return [None if items is None else sorted(items) for items in lists]


def online(settings: Settings, view: str, key: str, column: str) -> Any:
    return feature_store.online_rows(feature_store.open_store(settings), view, [key])[0][column]


def count(settings: Settings, table: str, key: str = "event_id") -> int:
    return len(set(ds.dataset(settings.offline_dir / table).to_table([key])[key].to_pylist()))


def features(settings: Settings) -> dict[str, list[float]]:
    ids = ["p1", "p2"]
    moments = pd.to_datetime([START + 100 * HOUR] * 2, unit="ms", utc=True)
    frame = pd.DataFrame({columns.TRANSACTION: ids, columns.EVENT_TIMESTAMP: moments})
    rows = feature_store.historical(
        feature_store.open_store(settings), views.FRAUD_SERVICE, frame, before=False
    ).to_pylist()
    names = [f"{views.TRANSACTION_FEATURES}__{name}" for name in velocity.FEATURES]
    return {row[columns.TRANSACTION]: [row[name] for name in names] for row in rows}


def state(settings: Settings) -> dict[str, Any]:
    """Everything that readers see."""
    return {
        "ann": items_at(settings, 0, 1, 48, 49),
        "bob": items_at(settings, 24, 25, user="bob"),
        "session": online(settings, views.USER_HISTORY, "session:s", columns.ITEMS),
        "card": online(settings, views.CARD_HISTORY, "c", columns.TIMES),
        "frauds": online(settings, views.TERMINAL_HISTORY, "t", columns.FRAUD_KNOWN_TIMES),
        "sold": online(settings, views.ITEM_HISTORY, "a", columns.ORDERS),
        "features": features(settings),
        "tables": {table: count(settings, table) for table in ("shop_events", "impressions", "labels")},
    }


def test_the_job_makes_features_of_the_log_and_again_is_no_change(
    run: Callable[[Settings], list[str]], tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path)
    log = open_log(settings)
    send(log, *SHOP, *OTHERS)
    log.append(topics.SHOP, [("u", b'{"type": "purchase", "event_id"'), ("u", b'{"type": "refund"}')])
    log.append(topics.LABELS, [("x", json.dumps(event("label", "l2", 3, fraud=True)).encode())])

    said = run(settings)
    assert said[0] == "features: 14 records folded into histories, 3 dead-lettered"
    assert said[1].startswith("features: 5 item days, ")
    first = state(settings)
    assert first["ann"] == [None, ["a", "b"], ["a", "b"], ["a", "b", "c"]]
    assert first["bob"] == [None, ["a", "b"]]
    assert (first["session"], first["sold"]) == (["a"], [1, 1])
    assert (first["card"], first["frauds"]) == ([START, START + HOUR], [START + 90 * HOUR])
    counts = [values[velocity.FEATURES.index("card_count_24h")] for values in first["features"].values()]
    assert counts == [1, 2]
    assert first["tables"] == {"shop_events": 7, "impressions": 1, "labels": 1}

    letters = [json.loads(record.value) for record in log.read(topics.DEAD_LETTERS, client.START)]
    assert sorted((letter["reason"], letter["origin"]["topic"]) for letter in letters) == [
        ("no transaction_id", topics.LABELS), ("unknown type", topics.SHOP), ("unknown type", topics.SHOP),
    ]  # fmt: skip
    for letter in letters:
        from_there = Position({letter["origin"]["partition"]: letter["origin"]["offset"]})
        (origin,) = log.read(letter["origin"]["topic"], from_there, max_records=1)
        assert letter["value"] == origin.value.decode()

    assert run(settings)[0] == "features: 0 records folded into histories, 0 dead-lettered"
    send(log, *SHOP, *OTHERS)  # every event once more
    run(settings)
    assert state(settings) == first
    assert len(log.read(topics.DEAD_LETTERS, client.START)) == 3

    send(log, bought("future", 1000, "z"))
    run(settings)
    assert state(settings)["ann"] == first["ann"]
    send(log, bought("late", 0.5, "y"))
    run(settings)
    assert items_at(settings, 0.5, 1, 48, 49, 1001) == [
        ["a", "b"], ["a", "b", "y"], ["a", "b", "y"], ["a", "b", "c", "y"], ["a", "b", "c", "y", "z"],
    ]  # fmt: skip


def test_a_micro_batch_that_is_handled_twice_changes_nothing(spark: SparkSession, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    first = FeatureJob(settings)
    events = [*OTHERS, *SHOP, SHOP[1], {"type": "refund"}]
    rows = [("t", 0, offset, "k", json.dumps(event), 0) for offset, event in enumerate(events)]
    records = spark.createDataFrame(rows, RECORD_SCHEMA)
    first.process_records(records, 0)
    assert first.items_touched == {"a", "b", "c"}
    assert first.impressions_seen
    before = (items_at(settings, 0, 1, 49), features(settings), count(settings, "shop_events"))
    assert (first.records, first.rejected) == (len(events), 1)

    again = FeatureJob(settings)  # as after a crash
    again.process_records(records, 0)
    assert (items_at(settings, 0, 1, 49), features(settings), count(settings, "shop_events")) == before
    assert len(list((settings.offline_dir / "shop_events").iterdir())) == 1
    letters = [
        json.loads(record.value)["event_id"] for record in open_log(settings).read(topics.DEAD_LETTERS, client.START)
    ]
    assert set(letters) == {f"t:0:{len(events) - 1}"}  # the same letter: readers count it once


def test_an_empty_log_is_no_error(run: Callable[[Settings], list[str]], tmp_path: Path) -> None:
    said = run(Settings(data_dir=tmp_path))
    assert said[0] == "features: 0 records folded into histories, 0 dead-lettered"
    assert "run `headrace import`" in said[1]


def test_only_one_job_works_on_a_data_directory(run: Callable[[Settings], list[str]], tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    send(open_log(settings), SHOP[1])
    with job._sole_job(settings):
        with pytest.raises(JobRunningError, match="already works on"), job._sole_job(settings):
            pass
        FeatureJob(settings).report_progress({topics.SHOP: open_log(settings).end(topics.SHOP)})
        said = run(settings)
        assert "`headrace stream` is running" in said[0]
    with job._sole_job(settings):
        pass


def test_beside_a_running_job_it_waits_until_that_has_read_everything_or_ends(
    run: Callable[[Settings], list[str]], tmp_path: Path
) -> None:
    settings, log, events = Settings(data_dir=tmp_path), open_log(Settings(data_dir=tmp_path)), list(SHOP)
    send(log, events.pop())
    running = FeatureJob(settings)
    running.report_progress({topics.SHOP: log.end(topics.SHOP)})
    send(log, *events)
    with ThreadPoolExecutor() as pool:
        with job._sole_job(settings):
            waits = pool.submit(job._wait_for_running_job, settings, log)
            time.sleep(0.5)
            assert not waits.done(), "what was reported does not reach the end"
            running.report_progress({topics.SHOP: log.end(topics.SHOP)})
            waits.result(timeout=10)
            send(log, SHOP[0])
            waits = pool.submit(job._wait_for_running_job, settings, log)
        with pytest.raises(JobError, match="has ended; run this again"):
            waits.result(timeout=10)


def test_a_batch_that_fails_for_good_is_told_and_the_next_start_goes_on(
    run: Callable[[Settings], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path)
    send(open_log(settings), *SHOP)
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError("No space left on device")

        patch.setattr(job, "write_table", full)
        with pytest.raises(JobError, match="No space left on device"):
            run(settings)
    run(settings)
    assert items_at(settings, 49) == [["a", "b", "c"]]
    assert count(settings, "shop_events") == len(SHOP)
