"""Exposures meet their outcomes once each, on the right day, for the right unit."""

from datetime import UTC, date, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apps.experiments.report import UNITS_FILE as READ_FILE
from apps.experiments.report import UNITS_SCHEMA, load_units
from features.contract.events import ExperimentDefined, key_of, to_json
from infra import topics
from infra.log.open import open_log
from infra.settings import Settings
from streaming.exposures import UNITS_TABLE, experiment_units, run

pytestmark = pytest.mark.slow

STORED = {
    "impressions": pa.schema(
        {name: pa.string() for name in ("event_id", "user_id", "session_id", "experiment", "variation")}
        | {"event_time": pa.int64(), "items": pa.list_(pa.struct({"item_id": pa.string(), "position": pa.int32()}))}
    ),
    "shop_events": pa.schema(
        {name: pa.string() for name in ("event_id", "type", "user_id", "session_id", "item_id", "request_id", "title")}
        | {"event_time": pa.int64(), "quantity": pa.float64(), "price": pa.float64()}
    ),
}
"""As the stream job stores them, in another order and with columns that this job does not read."""


def at(day, hour=12, month=11):
    return int(datetime(2026, month, day, hour, tzinfo=UTC).timestamp() * 1000)


def seen(event_id, *, user="u", session=None, variation="A", experiment="e", day=1, hour=12, items=("x", "y")):
    return {
        "event_id": event_id,
        "event_time": at(day, hour),
        "user_id": user,
        "session_id": session,
        "experiment": experiment,
        "variation": variation,
        "items": [{"item_id": item} for item in items],
    }


def outcome(event_id, *, request=None, user="u", session=None, item="x", day=1, hour=13, month=11, **more):
    return {
        "event_id": event_id,
        "type": "purchase",
        "event_time": at(day, hour, month),
        "user_id": user,
        "session_id": session,
        "item_id": item,
        "quantity": 1.0,
        "price": 2.0,
        "request_id": request,
    } | more


@pytest.fixture
def units(spark):
    """Rows by (variation, unit, day of the month), without their zeros."""

    def make(impressions, shop_events, **more):
        frame = experiment_units(
            spark.createDataFrame(pa.Table.from_pylist(impressions, schema=STORED["impressions"])),
            spark.createDataFrame(pa.Table.from_pylist(shop_events, schema=STORED["shop_events"])),
            **more,
        )
        rows = [row.asDict() for row in frame.collect()]
        assert all(value is not None for row in rows for value in row.values())
        return {
            (row.pop("variation"), row.pop("unit"), row.pop("day").day): {
                name: value for name, value in row.items() if value and name != "experiment"
            }
            for row in rows
        }

    return make


def test_an_impression_and_what_was_bought_of_it(units):
    rows = units([seen("i1")], [outcome("p1", request="i1", quantity=3.0)])
    assert rows == {
        ("A", "u", 1): {
            "exposures": 1, "shown": 2, "conversions": 1, "value": 6.0, "purchases_after": 1, "spend_after": 6.0,
        }
    }  # fmt: skip


def test_a_repeated_event_counts_once(units):
    rows = units([seen("i1"), seen("i1")], [outcome("p1", request="i1"), outcome("p1", request="i1")])
    assert rows[("A", "u", 1)]["exposures"] == 1
    assert rows[("A", "u", 1)]["conversions"] == 1
    assert rows[("A", "u", 1)]["purchases_after"] == 1


def test_only_purchases_of_shown_items_that_name_the_impression_convert(units):
    rows = units(
        [seen("i1")],
        [
            outcome("p1", request="i1", item="not-shown"),
            outcome("p2", request="another"),
            outcome("p3"),
            outcome("v1", request="i1", type="view"),
        ],
    )
    assert rows == {("A", "u", 1): {"exposures": 1, "shown": 2, "purchases_after": 3, "spend_after": 6.0}}


def test_a_late_outcome_counts_for_the_day_it_happened_and_for_the_units_variation(units):
    rows = units([seen("i1", day=1)], [outcome("p1", request="i1", day=9, user="someone-else")])
    assert rows == {("A", "u", 1): {"exposures": 1, "shown": 2}, ("A", "u", 9): {"conversions": 1, "value": 2.0}}


def test_an_outcome_counts_up_to_the_horizon(units):
    bought = [
        outcome("p1", request="i1", user="v", month=12, day=1, hour=12),
        outcome("p2", request="i1", user="v", month=12, day=1, hour=13),
    ]
    assert units([seen("i1", hour=12)], bought)[("A", "u", 1)]["conversions"] == 1


def test_returns_are_kept_apart(units):
    rows = units(
        [seen("i1")], [outcome("p1", request="i1"), outcome("r1", request="i1", type="return", day=3, quantity=1.0)]
    )
    assert rows[("A", "u", 1)]["conversions"] == 1
    assert rows[("A", "u", 3)] == {"returns": 1, "returned_value": 2.0}


def test_purchases_before_the_first_exposure_are_not_after_it(units):
    impressions = [seen("i1", hour=12), seen("i2", hour=18)]
    rows = units(impressions, [outcome("p1", hour=11), outcome("p2", hour=13), outcome("p3", hour=19)])
    assert rows[("A", "u", 1)]["purchases_after"] == 2


def test_a_clock_behind_does_not_lose_the_conversion(units):
    assert units([seen("i1", hour=12)], [outcome("p1", request="i1", hour=11)])[("A", "u", 1)]["conversions"] == 1


def test_the_session_stands_in_for_an_unknown_user(units):
    rows = units([seen("i1", user=None, session="s"), seen("i2", session="s")], [outcome("p1", user=None, session="s")])
    assert rows[("A", "s", 1)]["purchases_after"] == 1
    assert rows[("A", "u", 1)] == {"exposures": 1, "shown": 2}


def test_an_experiment_on_sessions_counts_sessions(units):
    impressions = [seen("i1", session="s1"), seen("i2", session="s2", variation="B")]
    rows = units(impressions, [outcome("p1", session="s2")], by_session={"e"})
    assert rows == {
        ("A", "s1", 1): {"exposures": 1, "shown": 2},
        ("B", "s2", 1): {"exposures": 1, "shown": 2, "purchases_after": 1, "spend_after": 2.0},
    }


def test_a_missing_price_is_a_conversion_without_value(units):
    rows = units([seen("i1")], [outcome("p1", request="i1", price=None)])
    assert rows[("A", "u", 1)]["conversions"] == 1
    assert "value" not in rows[("A", "u", 1)]


def test_impressions_outside_experiments_and_empty_lists(units):
    rows = units([seen("i1", experiment=None, variation=None), seen("i2", items=())], [])
    assert rows == {("A", "u", 1): {"exposures": 1}}


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path)


def test_the_table_is_what_the_report_reads(spark, settings):
    assert f"{UNITS_TABLE}.parquet" == READ_FILE
    assert run(spark, settings) == 0
    written = pq.read_schema(settings.offline_dir / READ_FILE)
    assert (written.names, written.types) == (UNITS_SCHEMA.names, UNITS_SCHEMA.types)


def test_run_reads_the_folders_and_replaces_the_table(spark, settings):
    define_by_session(settings, "by-session")
    write(settings, "impressions", 1, [seen("i1"), seen("i2", experiment="by-session", session="s")])
    write(settings, "shop_events", 1, [outcome("p1", request="i1")])
    assert run(spark, settings) == 2
    write(settings, "shop_events", 2, [outcome("p1", request="i1"), outcome("p2", request="i1", item="y", day=2)])
    assert run(spark, settings) == 3
    assert load_units(settings.offline_dir, "e")["day"].to_pylist() == [date(2026, 11, 1), date(2026, 11, 2)]
    assert load_units(settings.offline_dir, "by-session")["unit"].to_pylist() == ["s"]
    assert [path.name for path in settings.offline_dir.iterdir() if path.is_file()] == [READ_FILE]


def write(settings, folder, batch, rows):
    path = settings.offline_dir / folder
    path.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=STORED[folder]), path / f"batch-{batch:08d}.parquet")


def define_by_session(settings, key):
    event = ExperimentDefined(
        type="experiment",
        event_id="x",
        event_time=datetime(2026, 11, 1, tzinfo=UTC),
        experiment=key,
        definition={"unit": "session"},
    )
    open_log(settings).append(topics.EXPERIMENTS, [(key_of(event), to_json(event))])
