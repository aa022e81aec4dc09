"""Held-out events are sent visit by visit, each with a request for recommendations at its first moment."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from apps.commands.traffic import _held_out_visits
from features.recommender.recency import VISIT_GAP_MS
from infra.settings import Settings


def test_a_visit_ends_after_half_an_hour_without_an_event(tmp_path: Path) -> None:
    moments = [("u2", 5), ("u1", 0), ("u1", VISIT_GAP_MS), ("u1", 2 * VISIT_GAP_MS + 1), (None, 1)]
    rows = [{"user_id": user, "event_time": moment, "type": "view"} for user, moment in moments]
    (tmp_path / "holdout").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "holdout" / "shop_events.parquet")
    visits = _held_out_visits(Settings(data_dir=tmp_path), None)
    times = [(moment, user, [line["event_time"] for line in lines]) for moment, user, lines in visits]
    assert times == [(0, "u1", [0, VISIT_GAP_MS]), (5, "u2", [5]), (2 * VISIT_GAP_MS + 1, "u1", [2 * VISIT_GAP_MS + 1])]
    assert [moment for moment, _, _ in _held_out_visits(Settings(data_dir=tmp_path), 2)] == [0, 2 * VISIT_GAP_MS + 1]
