"""Divides time for training: the history, the ranker's part of it, and the held-out days of the gate.

    start ───────── ranker_start ───────── split ───────── end
    retrieval learns          the ranker learns      the gate evaluates

The ranker learns on visits that the retrieval model and the co-purchase counts have not seen, so that their scores are
as uncertain in training as in serving.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from features.contract import columns
from features.contract.timestamps import DAY
from infra.settings import Settings

HOLDOUT_DAYS = 30
RANKER_DAYS = 60


class NoDataError(Exception):
    """Raised when there is no data to learn from yet; says what to run."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The moments that divide the data, ms since the epoch."""

    start: int
    ranker_start: int
    split: int
    end: int


def holdout_file(settings: Settings) -> Path:
    """Returns the file of shop events that the importer kept out of the log, to be replayed later."""
    return settings.data_dir / "holdout" / "shop_events.parquet"


def read_timeline(settings: Settings, *, holdout_days: int = HOLDOUT_DAYS, ranker_days: int = RANKER_DAYS) -> Timeline:
    """Reads the division of the stored data. What the importer held out is held out, else the last `holdout_days`.

    Raises NoDataError before `headrace features` has run on any shop events.
    """
    folder = settings.offline_dir / columns.SHOP_EVENTS
    if not any(folder.glob("*.parquet")):
        raise NoDataError("no shop events in the offline store; run `headrace import` and `headrace features` first")
    moments = ds.dataset(folder).scanner(["type", "event_time"]).to_table()
    moments = moments.filter(pc.is_in(moments["type"], pa.array(["purchase", "return", "view", "cart"])))
    if not moments.num_rows:
        raise NoDataError("the offline store holds a catalogue but nothing that users did; import some history")
    limits = pc.min_max(moments["event_time"]).as_py()
    start, end, split = limits["min"], limits["max"], limits["max"] - holdout_days * DAY
    if holdout_file(settings).exists():
        held_out = pc.min_max(ds.dataset(holdout_file(settings)).to_table(["event_time"])["event_time"]).as_py()
        if held_out["min"] is not None:
            split, end = held_out["min"], held_out["max"]
    return Timeline(start, max(start, split - ranker_days * DAY), split, end)
