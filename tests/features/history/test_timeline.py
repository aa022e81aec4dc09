"""How time is divided for learning."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.contract.timestamps import DAY
from features.history.timeline import NoDataError, Timeline, holdout_file, read_timeline
from infra.settings import Settings

START = 20_000 * DAY


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def write(path: Path, **days: int) -> None:
    """One event of each type, so many days after START."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = pa.array([START + day * DAY for day in days.values()], pa.int64())
    pq.write_table(pa.table({"type": pa.array([*days], pa.string()), "event_time": times}), path)


def stored(settings: Settings, name: str = "batch-0") -> Path:
    return settings.offline_dir / "shop_events" / f"{name}.parquet"


def test_the_last_days_are_held_out_and_the_ranker_learns_before_them(settings: Settings) -> None:
    write(stored(settings, "batch-0"), purchase=0, item=-50)
    write(stored(settings, "batch-1"), view=200, item=300)
    assert read_timeline(settings) == Timeline(START, START + 110 * DAY, START + 170 * DAY, START + 200 * DAY)
    assert read_timeline(settings, holdout_days=10, ranker_days=20) == Timeline(
        START, START + 170 * DAY, START + 190 * DAY, START + 200 * DAY
    )


def test_what_the_importer_kept_aside_is_held_out(settings: Settings) -> None:
    write(stored(settings), purchase=0, cart=100)
    write(holdout_file(settings), purchase=101, view=140)
    assert read_timeline(settings) == Timeline(START, START + 41 * DAY, START + 101 * DAY, START + 140 * DAY)


def test_nothing_held_out_is_as_if_there_were_no_file(settings: Settings) -> None:
    write(stored(settings), purchase=0, cart=100)
    without = read_timeline(settings)
    write(holdout_file(settings))
    assert read_timeline(settings) == without


def test_a_short_history_leaves_no_ranker_time_before_its_start(settings: Settings) -> None:
    write(stored(settings), purchase=0, cart=40)
    timeline = read_timeline(settings)
    assert (timeline.start, timeline.ranker_start, timeline.split) == (START, START, START + 10 * DAY)


def test_nothing_to_learn_from_says_what_to_run(settings: Settings) -> None:
    with pytest.raises(NoDataError, match="run `headrace import` and `headrace features` first"):
        read_timeline(settings)
    write(stored(settings), item=3)
    with pytest.raises(NoDataError, match="a catalogue but nothing that users did"):
        read_timeline(settings)
