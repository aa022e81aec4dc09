"""The feature store on real Feast, Parquet and SQLite: what held at a moment, and what holds now."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.contract import columns
from features.fraud import velocity
from features.history import arrays
from features.store import feature_store, views
from infra.settings import Settings

STAMP = pa.timestamp("us", tz="UTC")
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
NEIGHBOURS = f"{views.ITEM_NEIGHBOURS}__{columns.NEIGHBOURS}"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(data_dir=tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def feast(settings: Settings) -> Any:
    return feature_store.open_store(settings)


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def user_row(user: str, minutes: float, *items: str, created: float = 0) -> dict[str, Any]:
    """A row of the user history that holds from so many minutes after noon on."""
    count = len(items)
    return {
        columns.USER: user, columns.TIMES: list(range(count)), columns.ITEMS: list(items),
        columns.EVENT_TYPES: [2] * count, columns.PRICES: [0.5] * count,
        columns.QUANTITIES: [1.0] * count, columns.EVENT_HASHES: [-(2**63), 7][:count],
        columns.EVENT_TIMESTAMP: at(minutes), columns.CREATED_TIMESTAMP: at(created),
    }  # fmt: skip


def user_rows(*rows: dict[str, Any]) -> pa.Table:
    types = {np_type: pa.list_(kind) for np_type, kind in (("int64", pa.int64()), ("float64", pa.float64()))}
    lists = {
        name: types.get(getattr(kind, "__name__", ""), pa.list_(pa.string()))
        for name, kind in arrays.USER_COLUMNS.items()
    }
    stamps = {columns.EVENT_TIMESTAMP: STAMP, columns.CREATED_TIMESTAMP: STAMP}
    return pa.Table.from_pylist(list(rows), pa.schema({columns.USER: pa.string(), **lists, **stamps}))


def near(item: str, minutes: float, *neighbours: str, created: float = 0) -> dict[str, Any]:
    """A row of the items' neighbours that holds from so many minutes after noon on."""
    return {
        columns.ITEM: item, columns.NEIGHBOURS: list(neighbours), columns.SIMILARITIES: [0.5] * len(neighbours),
        columns.EVENT_TIMESTAMP: at(minutes), columns.CREATED_TIMESTAMP: at(created),
    }  # fmt: skip


@pytest.fixture(scope="module")
def write(settings: Settings) -> Callable[..., None]:
    """Writes rows of the items' neighbours into a file of their own."""
    folder = settings.offline_dir / views.ITEM_NEIGHBOURS
    folder.mkdir(parents=True)
    lists = {columns.NEIGHBOURS: pa.list_(pa.string()), columns.SIMILARITIES: pa.list_(pa.float64())}
    stamps = {columns.EVENT_TIMESTAMP: STAMP, columns.CREATED_TIMESTAMP: STAMP}
    schema = pa.schema({columns.ITEM: pa.string(), **lists, **stamps})

    def write(*rows: dict[str, Any]) -> None:
        table = pa.Table.from_pylist(list(rows), schema)
        pq.write_table(table, folder / f"batch-{len(list(folder.iterdir()))}.parquet")

    return write


@pytest.fixture(scope="module")
def near_at(feast: Any) -> Callable[..., list[list[str] | None]]:
    """The neighbours of (item, minutes after noon) pairs, as they were then."""

    def read(*examples: tuple[str, float], before: bool = False) -> list[list[str] | None]:
        items, minutes = zip(*examples, strict=True)
        moments = pd.to_datetime([at(minute) for minute in minutes], utc=True)
        frame = pd.DataFrame({columns.ITEM: items, columns.EVENT_TIMESTAMP: moments})
        rows = feature_store.historical(feast, views.ITEM_NEIGHBOURS_SERVICE, frame, before=before)
        neighbours: list[list[str] | None] = rows[NEIGHBOURS].to_pylist()
        return neighbours

    return read


Write = Callable[..., None]
Read = Callable[..., list[list[str] | None]]


def test_each_example_gets_the_row_that_held_then_in_the_order_asked(write: Write, near_at: Read) -> None:
    write(near("ann", 0, "a"), near("ann", 10, "a", "b"), near("bob", 5, "c"))
    assert near_at(("bob", 60), ("ann", 9.9), ("ann", 10), ("ann", -1), ("nobody", 60), ("ann", 9.9)) == [
        ["c"], ["a"], ["a", "b"], None, None, ["a"],
    ]  # fmt: skip


def test_before_is_strict(write: Write, near_at: Read) -> None:
    write(near("cat", 0, "a"), near("cat", 10, "a", "bought just now"))
    assert near_at(("cat", 10), before=True) == [["a"]]
    assert near_at(("cat", 10)) == [["a", "bought just now"]]
    assert near_at(("cat", 0), ("cat", 10 + 1 / 60_000), before=True) == [None, ["a", "bought just now"]]


def test_a_planted_future_row_does_not_leak(write: Write, near_at: Read) -> None:
    write(near("dan", 0, "a"))
    moments = [("dan", minute) for minute in (-5.0, 0.0, 1.0, 59.0)]
    without = near_at(*moments)
    write(near("dan", 60, "a", "future", created=-1000), near("dan", 10**6, "future"))
    assert near_at(*moments) == without == [None, ["a"], ["a"], ["a"]]
    assert near_at(("dan", 60)) == [["a", "future"]]


def test_a_row_that_was_written_again_replaces_the_older_one(write: Write, near_at: Read) -> None:
    write(near("eve", 10, "late", "a", created=200))
    write(near("eve", 10, "a", created=100), near("eve", 0, "early", created=300))
    assert near_at(("eve", 11), ("eve", 5)) == [["late", "a"], ["early"]]


def test_the_columns_of_a_service_are_named_after_their_view(feast: Any, write: Write) -> None:
    write(near("fay", 0, "a"))
    frame = pd.DataFrame({columns.ITEM: ["fay"], columns.EVENT_TIMESTAMP: [pd.Timestamp(NOON)], "mine": [5]})
    features = feature_store.historical(feast, views.ITEM_NEIGHBOURS_SERVICE, frame, before=False)
    assert set(features.column_names) >= {NEIGHBOURS, f"{views.ITEM_NEIGHBOURS}__{columns.SIMILARITIES}"}
    assert features["mine"].to_pylist() == [5]
    assert frame[columns.EVENT_TIMESTAMP][0] == NOON  # the caller's frame is left as it was


def test_what_is_written_online_is_read_online(feast: Any) -> None:
    feature_store.write_online(
        feast, views.USER_HISTORY, user_rows(user_row("gus", 0, "a", "käse"), user_row("hal", 0))
    )
    gus, nobody, hal = feature_store.online_rows(feast, views.USER_HISTORY, ["gus", "nobody", "hal"])
    assert set(gus) == set(arrays.USER_COLUMNS)
    assert (gus[columns.ITEMS], gus[columns.EVENT_HASHES]) == (["a", "käse"], [-(2**63), 7])
    assert set(nobody.values()) == {None}
    both = arrays.from_lists([gus, nobody, hal], arrays.USER_COLUMNS)
    assert both.lengths.tolist() == [2, 0, 0]
    assert feature_store.online_rows(feast, views.USER_HISTORY, []) == []


def test_the_newest_row_holds_online_and_a_repeated_one_changes_nothing(feast: Any) -> None:
    rows = user_rows(user_row("ida", 5, "a", "b"))
    for _ in range(2):
        feature_store.write_online(feast, views.USER_HISTORY, rows)
    feature_store.write_online(feast, views.USER_HISTORY, rows.slice(0, 0))
    assert feature_store.online_rows(feast, views.USER_HISTORY, ["ida"])[0][columns.ITEMS] == ["a", "b"]
    feature_store.write_online(feast, views.USER_HISTORY, user_rows(user_row("ida", 6, "b", "c")))
    assert feature_store.online_rows(feast, views.USER_HISTORY, ["ida"])[0][columns.ITEMS] == ["b", "c"]


def test_opening_again_finds_the_same_store(feast: Any, settings: Settings) -> None:
    feature_store.write_online(feast, views.USER_HISTORY, user_rows(user_row("jan", 0, "a")))
    again = feature_store.open_store(settings)
    assert feature_store.online_rows(again, views.USER_HISTORY, ["jan"])[0][columns.ITEMS] == ["a"]
    assert len(list(settings.feast_dir.glob("registry-*.db"))) == 1


def test_two_that_open_a_new_store_at_once_both_find_every_view(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(lambda _: feature_store.open_store(settings), range(3)))
    for store in stores:
        assert feature_store.online_rows(store, views.ITEM_HISTORY, ["nothing"]) == [dict.fromkeys(arrays.ITEM_COLUMNS)]


def test_every_view_serves_the_columns_that_the_code_names(feast: Any) -> None:
    named = {
        views.USER_HISTORY: set(arrays.USER_COLUMNS),
        views.ITEM_HISTORY: set(arrays.ITEM_COLUMNS),
        views.CARD_HISTORY: set(arrays.CARD_COLUMNS),
        views.TERMINAL_HISTORY: {*arrays.TERMINAL_COLUMNS, *views.FRAUD_LISTS},
        views.ITEM_NEIGHBOURS: {columns.NEIGHBOURS, columns.SIMILARITIES},
        views.TRANSACTION_FEATURES: set(velocity.FEATURES),
    }
    assert {view.name: {field.name for field in view.features} for view in feast.list_feature_views()} == named
