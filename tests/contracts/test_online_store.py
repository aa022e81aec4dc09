"""What every online store promises, whichever adapter holds it, with Feast itself as the judge of what is stored."""

import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from features.contract import columns
from features.history import arrays
from features.store import feature_store, views
from features.store.codec import decode_varints, encode_varints
from features.store.online import FAILURES_BEFORE_PAUSE, OnlineStoreError
from features.store.redis_rows import RedisAddress
from infra.local import redis_server
from infra.local.redis_server import RedisServer
from infra.settings import Settings

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
VIEW = views.USER_HISTORY
TIMEOUT_MILLISECONDS = 300
needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(Settings(data_dir=tmp_path_factory.mktemp("redis"), redis_port=19210)) as server:
        yield server


@pytest.fixture(scope="module", params=["sqlite", pytest.param("redis", marks=needs_redis)])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("data")
    if request.param == "sqlite":
        return Settings(data_dir=folder)
    url = redis_server.url(request.getfixturevalue("server").settings)
    return Settings(data_dir=folder, redis_url=url, redis_timeout_milliseconds=TIMEOUT_MILLISECONDS)


@pytest.fixture(scope="module")
def feast(settings: Settings) -> feature_store.Store:
    return feature_store.open_store(settings)


def row(user: str, seconds: float = 0, *, created: float = 0, **lists: Any) -> dict[str, Any]:
    """A row of the user history; features that are not named are null."""
    stamps = {
        columns.EVENT_TIMESTAMP: NOON + timedelta(seconds=seconds),
        columns.CREATED_TIMESTAMP: NOON + timedelta(seconds=created),
    }
    return {columns.USER: user, **dict.fromkeys(arrays.USER_COLUMNS), **lists, **stamps}


def table(*rows: dict[str, Any]) -> pa.Table:
    types = {np.int64: pa.int64(), np.float64: pa.float64(), object: pa.string()}
    stamp = pa.timestamp("us", tz="UTC")
    schema = {
        columns.USER: pa.string(),
        **{name: pa.list_(types[dtype]) for name, dtype in arrays.USER_COLUMNS.items()},
        columns.EVENT_TIMESTAMP: stamp,
        columns.CREATED_TIMESTAMP: stamp,
    }
    return pa.Table.from_pylist(list(rows), pa.schema(schema))


def through_feast(feast: feature_store.Store, *users: str) -> list[dict[str, Any]]:
    """What Feast's own reader finds."""
    features = feast.get_online_features(
        features=[f"{VIEW}:{name}" for name in arrays.USER_COLUMNS],
        entity_rows=[{columns.USER: user} for user in users],
    ).to_dict()
    return [{name: features[name][row] for name in arrays.USER_COLUMNS} for row in range(len(users))]


NUMBERS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=200)
LISTS = st.fixed_dictionaries(
    {
        columns.EVENT_TYPES: st.just([1]),  # Feast refuses a frame that is null throughout
        columns.TIMES: st.none() | st.lists(NUMBERS, max_size=40),
        columns.ITEMS: st.none() | st.lists(TEXTS, max_size=40),
        columns.PRICES: st.none() | st.lists(st.floats(allow_nan=False), max_size=40),
    }
)
slow_examples = examples(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@slow_examples
@given(rows=st.lists(LISTS, min_size=1, max_size=8), name=TEXTS.filter(bool))
def test_what_we_write_is_what_feast_writes_and_what_feast_reads(
    feast: feature_store.Store, rows: list[dict[str, Any]], name: str
) -> None:
    salt = uuid.uuid4().hex
    ours, feasts = ([f"{owner}-{salt}-{number}-{name}" for number in range(len(rows))] for owner in ("ours", "feast"))
    feature_store.write_online(
        feast, VIEW, table(*(row(user, **lists) for user, lists in zip(ours, rows, strict=True)))
    )
    feast.write_to_online_store(
        VIEW, df=table(*(row(user, **lists) for user, lists in zip(feasts, rows, strict=True))).to_pandas()
    )
    expected = through_feast(feast, *feasts)
    assert through_feast(feast, *ours) == expected
    for users in (ours, feasts):  # and our reader finds the same, of both writers, of many rows and of one
        assert feature_store.online_rows(feast, VIEW, users) == expected
        assert feature_store.online_rows(feast, VIEW, users[:1]) == expected[:1]
    view = feast.online._views[VIEW]
    stored = [feast.online.rows.read(view, users, patient=True) for users in (ours, feasts)]
    assert [list(column) for column in stored[0]] == [list(column) for column in stored[1]]  # byte for byte


def test_empty_is_not_null_and_unknown_is_none(feast: feature_store.Store) -> None:
    feature_store.write_online(
        feast, VIEW, table(row("käse", items=[], times=[1], prices=None), row("ann", items=["a" * 10]))
    )
    kaese, nobody, ann = feature_store.online_rows(feast, VIEW, ["käse", "nobody", "ann"])
    assert (kaese[columns.ITEMS], kaese[columns.TIMES], kaese[columns.PRICES]) == ([], [1], None)
    assert set(nobody.values()) == {None}
    assert ann[columns.ITEMS] == ["a" * 10]
    assert feature_store.online_rows(feast, VIEW, []) == []
    empty = feature_store.online_history(feast, VIEW, [], arrays.USER_COLUMNS)
    assert len(empty) == 0


def test_many_rows_are_read_as_one_history(feast: feature_store.Store) -> None:
    users = [f"many-{number}" for number in range(3000)]
    sizes = [number % 7 for number in range(3000)]
    full = [
        {
            name: ([f"S{size:04d}"] if dtype is object else [dtype(size)]) * size
            for name, dtype in arrays.USER_COLUMNS.items()
        }
        for size in sizes
    ]
    feature_store.write_online(
        feast, VIEW, table(*(row(user, **lists) for user, lists in zip(users, full, strict=True)))
    )
    read = feature_store.online_history(feast, VIEW, [*users, "nobody"], arrays.USER_COLUMNS)
    assert read.lengths.tolist() == [*sizes, 0]
    expected = arrays.from_lists([*full, {}], arrays.USER_COLUMNS)
    for name, column in expected.entries.items():
        assert read.entries[name].tolist() == column.tolist()
        assert read.entries[name].dtype == column.dtype


def test_a_large_row_survives(feast: feature_store.Store) -> None:
    lists = {columns.TIMES: list(range(20_000)), columns.ITEMS: ["x" * 100] * 2_000, columns.PRICES: [0.5] * 3_000}
    feature_store.write_online(feast, VIEW, table(row("large", **lists)))
    assert {**through_feast(feast, "large")[0]} == {**dict.fromkeys(arrays.USER_COLUMNS), **lists}
    assert feature_store.online_rows(feast, VIEW, ["large"]) == through_feast(feast, "large")


@slow_examples
@given(
    moments=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12),
    parts=st.integers(1, 4),
    data=st.data(),
)
def test_an_older_row_never_wins_whoever_writes_when(
    feast: feature_store.Store, moments: list[tuple[int, int]], parts: int, data: st.DataObject
) -> None:
    user = f"race-{uuid.uuid4().hex}"
    # Times that differ by microseconds, in two threads, in any order, several rows of a user in one call.
    rows = [
        row(user, event / 1e6, created=created / 1e6, times=[event, created]) for event, created in set(moments)
    ] * 2
    order = data.draw(st.permutations(rows))
    calls = [list(order[start::parts]) for start in range(parts)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda call: feature_store.write_online(feast, VIEW, table(*call)) if call else None, calls))
    assert feature_store.online_rows(feast, VIEW, [user])[0][columns.TIMES] == list(max(moments))


def test_a_row_that_feast_wrote_counts_with_its_time(feast: feature_store.Store) -> None:
    feast.write_to_online_store(VIEW, df=table(row("mixed", 100, times=[2])).to_pandas())
    feature_store.write_online(feast, VIEW, table(row("mixed", 160, times=[3])))
    assert through_feast(feast, "mixed")[0][columns.TIMES] == [3]
    if "redis" in feast.config.online_store.type:
        feast.write_to_online_store(VIEW, df=table(row("mixed", 100, times=[2])).to_pandas())
        feature_store.write_online(feast, VIEW, table(row("mixed", 101, times=[1])))
        assert through_feast(feast, "mixed")[0][columns.TIMES] == [3]


def test_a_mark_follows_the_mark_before_it(feast: feature_store.Store) -> None:
    rows = feast.online.rows
    (first,) = rows.marks()
    assert rows.mark("one", after=first)
    assert not rows.mark("two", after="another")
    assert rows.marks() == {"one"}
    assert rows.mark("two", after="one")
    assert rows.marks() == {"two"}
    assert rows.epoch() == rows.epoch()


@given(st.lists(NUMBERS, max_size=50))
def test_varints_come_back_as_they_were(numbers: list[int]) -> None:
    data, sizes = encode_varints(np.array(numbers, dtype=np.int64))
    read, ends = decode_varints(data)
    assert read.tolist() == numbers
    assert ends.tolist() == np.cumsum(sizes).tolist()


@pytest.mark.parametrize(
    ("url", "feast_string"),
    [
        ("redis://127.0.0.1:7000/2", "127.0.0.1:7000,socket_timeout=0.5,socket_connect_timeout=0.5,db=2"),
        (
            "rediss://ann:p%40ss@cache:1",
            'cache:1,socket_timeout=0.5,socket_connect_timeout=0.5,ssl=true,username="ann",password="p@ss"',
        ),
        ("redis+cluster://a:1,b:2", "a:1,b:2,socket_timeout=0.5,socket_connect_timeout=0.5"),
    ],
)
def test_an_address_is_told_to_feast_in_its_own_way(url: str, feast_string: str) -> None:
    address = RedisAddress.parse(url)
    assert address.feast_string(timeout_seconds=0.5) == feast_string
    assert "p@ss" not in f"{address} {address!r}"


@pytest.mark.parametrize("url", ["http://a:1", "redis://a:1,b:2", "redis://:x", "redis://a:port", "redis://a:1/db"])
def test_an_address_without_sense_is_refused_in_words(url: str, tmp_path: Path) -> None:
    with pytest.raises(OnlineStoreError, match="HEADRACE_REDIS_URL is not redis://"):
        feature_store.open_store(Settings(data_dir=tmp_path, redis_url=url))


@needs_redis
def test_opening_the_store_needs_no_redis_and_reading_says_what_to_do(tmp_path: Path) -> None:
    feast = feature_store.open_store(Settings(data_dir=tmp_path, redis_url="redis://127.0.0.1:19211/0"))
    with pytest.raises(OnlineStoreError, match=r"cannot reach Redis at 127.0.0.1:19211 .*`make up` or\s+unset"):
        feature_store.online_rows(feast, VIEW, ["ann"])


@needs_redis
def test_a_redis_that_hangs_costs_a_request_its_bound_then_nothing_and_comes_back(tmp_path: Path) -> None:
    with RedisServer(Settings(data_dir=tmp_path / "redis", redis_port=19212)) as server:
        feast = feature_store.open_store(
            Settings(data_dir=tmp_path, redis_url=redis_server.url(server.settings), redis_timeout_milliseconds=150)
        )
        feature_store.write_online(feast, VIEW, table(row("ann", times=[1])))
        assert feature_store.online_rows(feast, VIEW, ["ann"])[0][columns.TIMES] == [1]
        server.send(signal.SIGSTOP)
        took = []
        for _ in range(FAILURES_BEFORE_PAUSE + 20):
            started = time.perf_counter()
            with pytest.raises(OnlineStoreError):
                feature_store.online_rows(feast, VIEW, ["ann"])
            took.append(time.perf_counter() - started)
        assert max(took) < 1.0
        assert sum(took[FAILURES_BEFORE_PAUSE:]) < 0.6  # most of them were not even sent
        server.send(signal.SIGCONT)
        deadline, rows = time.monotonic() + 5, None
        while rows is None and time.monotonic() < deadline:
            try:
                rows = feature_store.online_rows(feast, VIEW, ["ann"])
            except OnlineStoreError:
                time.sleep(0.05)
        assert rows is not None
        assert rows[0][columns.TIMES] == [1]


@needs_redis
def test_a_redis_that_was_killed_starts_a_new_epoch_and_serves_again(tmp_path: Path) -> None:
    with RedisServer(Settings(data_dir=tmp_path / "redis", redis_port=19213)) as server:
        feast = feature_store.open_store(Settings(data_dir=tmp_path, redis_url=redis_server.url(server.settings)))
        feature_store.write_online(feast, VIEW, table(row("ann", times=[1])))
        before = feast.online.rows.epoch()
        server.kill()
        with pytest.raises(OnlineStoreError):
            feast.online.rows.epoch()
        server.start()
        assert feast.online.rows.epoch() != before
        feature_store.write_online(feast, VIEW, table(row("bob", times=[2])))
        assert feature_store.online_rows(feast, VIEW, ["bob"])[0][columns.TIMES] == [2]


def test_threads_share_one_store(feast: feature_store.Store) -> None:
    feature_store.write_online(feast, VIEW, table(*(row(f"t{number}", times=[number]) for number in range(50))))
    barrier = threading.Barrier(8)

    def read(number: int) -> bool:
        barrier.wait(10)
        return all(
            feature_store.online_rows(feast, VIEW, [f"t{(number + step) % 50}"])[0][columns.TIMES]
            == [(number + step) % 50]
            for step in range(100)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
