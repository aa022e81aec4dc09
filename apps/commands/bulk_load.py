"""Appends a table of events to the event log at once: the quick way in for a history that was checked as a whole.

Real data, simulated data and your own files all take the form of this table first.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.contract.timestamps import rfc3339
from infra import topics
from infra.log.client import EventLog

CHUNK = 20_000
HOLDOUT = "holdout"
"""Folder in the data directory for events later than the end of the log: the gate and `headrace traffic` read it."""


def append_events(log: EventLog, events: pa.Table, *, on_progress: Callable[[int], None] = lambda rows: None) -> int:
    """Appends shop events (SHOP_EVENTS_SCHEMA, checked by the caller) in their order; returns how many."""
    for start in range(0, events.num_rows, CHUNK):
        rows = events.slice(start, CHUNK).to_pylist()
        log.append(topics.SHOP, [(row["user_id"] or row["session_id"] or row["item_id"], _json(row)) for row in rows])
        on_progress(len(rows))
    return int(events.num_rows)


def _json(row: dict[str, Any]) -> bytes:
    event = {name: value for name, value in row.items() if value is not None}
    event["event_time"] = rfc3339(event["event_time"])
    return orjson.dumps(event)


def append_dead_letters(log: EventLog, letters: Iterable[tuple[str, dict[str, Any]]], *, origin: str) -> int:
    """Appends (reason, line as it came) pairs of lines that cannot be events to the dead letters; returns how many."""
    pairs = [
        (reason, orjson.dumps({"reason": reason, "origin": {"import": origin}, "value": value}, default=str))
        for reason, value in letters
    ]
    for start in range(0, len(pairs), CHUNK):
        log.append(topics.DEAD_LETTERS, pairs[start : start + CHUNK])
    return len(pairs)


def split_at(events: pa.Table, moment: int) -> tuple[pa.Table, pa.Table]:
    """Returns the events before `moment` (ms) and those from it on. The whole catalogue belongs to the first part."""
    early = pc.or_(pc.less(events["event_time"], moment), pc.equal(events["type"], "item"))
    return events.filter(early), events.filter(pc.invert(early))


def write_holdout(folder: Path, events: pa.Table) -> None:
    """Writes held-out events to `folder`, where the gate and `headrace traffic` read them."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(events, folder / "shop_events.parquet")
