"""History into the event log, a table at a time: the quick way in for events that were checked as a whole.

The table of shop events is the common form of every history: real data, simulated data, your own files.
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
"""Folder, below the data directory, of what happened after the time the log ends: tests and replays read it."""


def append_events(log: EventLog, events: pa.Table, *, on_progress: Callable[[int], None] = lambda rows: None) -> int:
    """Append shop events (SHOP_EVENTS_SCHEMA, checked by the caller) in their order; returns how many."""
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
    """Keep what could not be an event: (reason, the line as it came) pairs. Returns how many."""
    pairs = [
        (reason, orjson.dumps({"reason": reason, "origin": {"import": origin}, "value": value}, default=str))
        for reason, value in letters
    ]
    for start in range(0, len(pairs), CHUNK):
        log.append(topics.DEAD_LETTERS, pairs[start : start + CHUNK])
    return len(pairs)


def split_at(events: pa.Table, moment: int) -> tuple[pa.Table, pa.Table]:
    """Events before `moment` (ms), and from it on. The catalogue belongs to the first part whole."""
    early = pc.or_(pc.less(events["event_time"], moment), pc.equal(events["type"], "item"))
    return events.filter(early), events.filter(pc.invert(early))


def write_holdout(folder: Path, events: pa.Table) -> None:
    """Keep later events aside in `folder`, where the gate and the replay find them."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(events, folder / "shop_events.parquet")
