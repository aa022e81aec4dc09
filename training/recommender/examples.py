"""Builds the examples that recommenders learn from: visits, each with its user's history just before it.

Histories come from Feast as of a visit's first moment, so that no visit leaks into its own input. For visits that the
importer held back, they are folded from the last known history and the held-back events before the visit, by the same
code as in the Spark job.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.contract import columns
from features.contract.timestamps import DAY
from features.history import arrays, item_totals
from features.history.arrays import History, from_arrow
from features.history.entries import user_entries
from features.history.fold import fold
from features.history.timeline import Timeline, holdout_file
from features.recommender.candidates import Candidates, Visitor, visitor_from_indices
from features.recommender.catalogue import Catalogue, item_windows
from features.store import feature_store, views
from features.store.feast_import import FeatureStore
from infra.settings import Settings
from training.recommender.visits import Visits

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True)
class RetrievalExample:
    """One visit as a request: the visitor with their history, and what they then bought."""

    visitor: Visitor
    targets: NDArray[np.int64]
    """Catalogue indices of the purchases."""
    auxiliary_targets: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """What else the visit did, by event type: "view", "cart", and "return" for purchases that were returned later."""


@dataclass(frozen=True, slots=True)
class RankingExample:
    """The candidates of one visit, and which of them were bought."""

    candidates: Candidates
    bought: NDArray[np.bool_]
    auxiliary_labels: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Which of them the visit also viewed, put into the cart or returned; a missing event type did not occur."""


def read_events(settings: Settings, *, split: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads shop events before `split` (ms), with the whole catalogue, and those from it on; each once, by time."""
    tables = [ds.dataset(settings.offline_dir / columns.SHOP_EVENTS).to_table()]
    if holdout_file(settings).exists():
        tables.append(pq.read_table(holdout_file(settings)))
    events = pa.concat_tables(tables).to_pandas().drop_duplicates("event_id")
    events = events.sort_values("event_time", kind="stable").reset_index(drop=True)
    early = (events["event_time"] < split) | (events["type"] == "item")
    return events[early], events[~early]


def _timestamps(moments: NDArray[np.int64]) -> pd.Series:
    """Converts ms since 1970 to UTC timestamps."""
    return pd.to_datetime(pd.Series(moments), unit="ms", utc=True)


def build_catalogue(
    feast: FeatureStore,
    events: pd.DataFrame,
    *,
    neighbours_as_of: int,
    vectors: NDArray[np.float32] | None = None,
) -> Catalogue:
    """Builds the catalogue of items bought in `events`, with their neighbours as of a moment (ms).

    vectors: float32 [items, D], zeros of width 1 where there are none yet.
    """
    bought = events[events["type"] == "purchase"]
    ids = sorted(bought[columns.ITEM].unique())
    listed = events[events["type"] == "item"].drop_duplicates(columns.ITEM, keep="last").set_index(columns.ITEM)
    titles = listed["title"].reindex(ids).fillna("").tolist()
    categories = listed["category"].reindex(ids).fillna("").tolist()
    prices = bought.groupby(columns.ITEM)["price"].last().reindex(ids).fillna(0.0).to_numpy(np.float32)
    index = {name: row for row, name in enumerate(ids)}
    requests = pd.DataFrame(
        {columns.ITEM: ids, columns.EVENT_TIMESTAMP: _timestamps(np.full(len(ids), neighbours_as_of))}
    )
    rows = feature_store.historical(feast, views.ITEM_NEIGHBOURS_SERVICE, requests, before=False)
    neighbour_rows = from_arrow(
        rows,
        {columns.TIMES: object, columns.SIMILARITIES: np.float64},
        names={
            columns.TIMES: f"{views.ITEM_NEIGHBOURS}__{columns.NEIGHBOURS}",
            columns.SIMILARITIES: f"{views.ITEM_NEIGHBOURS}__{columns.SIMILARITIES}",
        },
    )
    lengths, names = neighbour_rows.lengths, neighbour_rows.times
    width = int(lengths.max()) if len(neighbour_rows) and len(names) else 1
    neighbours = np.full((len(ids), width), -1, dtype=np.int32)
    similarities = np.zeros((len(ids), width), dtype=np.float32)
    position = np.arange(len(names)) - np.repeat(neighbour_rows.offsets[:-1], lengths)
    indices = np.array([index.get(name, -1) for name in names], dtype=np.int32)
    neighbours[neighbour_rows.row_of_entry, position] = indices
    similarities[neighbour_rows.row_of_entry, position] = np.where(
        indices >= 0, neighbour_rows.entries[columns.SIMILARITIES], 0
    )
    if vectors is None:
        vectors = np.zeros((len(ids), 1), dtype=np.float32)
    known_categories = tuple(categories) if any(categories) else ()
    return Catalogue(tuple(ids), tuple(titles), prices, neighbours, similarities, vectors, index, known_categories)


def histories_from_feast(feast: FeatureStore, visits: Visits) -> History:
    """Reads the user histories just before each visit, one row a visit."""
    return _histories(feast, visits.users, visits.times)


def _histories(feast: FeatureStore, users: NDArray[np.object_], times: NDArray[np.int64]) -> History:
    """Reads the history of each user strictly before each time (ms)."""
    requests = pd.DataFrame({columns.USER: users, columns.EVENT_TIMESTAMP: _timestamps(times)})
    rows = feature_store.historical(feast, views.USER_SERVICE, requests, before=True)
    names = {name: f"{views.USER_HISTORY}__{name}" for name in arrays.USER_COLUMNS}
    return from_arrow(rows, arrays.USER_COLUMNS, names=names)


def histories_after_split(feast: FeatureStore, visits: Visits, later: pd.DataFrame, *, split: int) -> History:
    """Returns the user histories just before each visit after `split` (ms), one row a visit.

    The histories at `split` come from Feast; the `later` events before each visit are folded in.
    """
    users, user_of_visit = np.unique(visits.users, return_inverse=True)
    at_split = _histories(feast, users, np.full(len(users), split))
    row_of_user = {name: row for row, name in enumerate(users)}
    events = later[later[columns.USER].isin(row_of_user)]
    new = user_entries(pa.Table.from_pandas(events, preserve_index=False))
    rows = np.array([row_of_user[name] for name in new.keys.to_pylist()], dtype=np.int64)
    merged = fold(at_split, rows, {**new.numeric, columns.ITEMS: new.strings[columns.ITEMS].to_numpy()}).merged
    return merged.at(user_of_visit, visits.times - 1, cap=arrays.USER_CAP, horizon=arrays.USER_HORIZON)


def retrieval_examples(visits: Visits, histories: History, catalogue: Catalogue) -> list[RetrievalExample]:
    """Joins visits with the histories before them; items that the catalogue does not know are left out of targets."""
    # Each id is looked up once for all visits: one by one, the look-ups took longer than a model's epoch.
    codes, names = pd.factorize(histories.entries[columns.ITEMS], use_na_sentinel=False)
    indexed = History(histories.offsets, histories.entries | {columns.ITEMS: catalogue.indices(names)[codes]})
    targets = {event_type: _catalogue_indices(lists, catalogue) for event_type, lists in visits.items.items()}
    return [
        RetrievalExample(
            visitor_from_indices(indexed.row(row), at=int(visits.times[row])),
            targets["purchase"][row],
            {event_type: lists[row] for event_type, lists in targets.items() if event_type != "purchase"},
        )
        for row in range(len(visits))
    ]


def _catalogue_indices(lists: list[NDArray[np.object_]], catalogue: Catalogue) -> list[NDArray[np.int64]]:
    """Returns the catalogue indices of each list of ids, ascending, each once, without unknown ids."""
    codes, names = pd.factorize(np.concatenate([*lists, np.empty(0, dtype=object)]), use_na_sentinel=False)
    indices = np.split(catalogue.indices(names)[codes], np.cumsum([len(items) for items in lists])[:-1])
    return [np.unique(row[row >= 0]) for row in indices]


class ItemWindowsByDay:
    """Gives the item windows of any day: from Feast up to the split, and from held-back events after it."""

    def __init__(self, feast: FeatureStore, catalogue: Catalogue, later: pd.DataFrame, timeline: Timeline) -> None:
        """later: shop events after the split."""
        self._feast = feast
        self._catalogue = catalogue
        self._split_day = timeline.split // DAY
        self._histories_after_split = self._fold_later(later, timeline)
        self._days: dict[int, NDArray[np.float32]] = {}

    def prepare(self, moments: NDArray[np.int64]) -> None:
        """Fetches the days of these moments (ms) at once."""
        days = np.setdiff1d(np.unique(moments // DAY), list(self._days))
        stored = days[days <= self._split_day]
        if len(stored):
            histories = self._item_histories(stored)
            count = len(self._catalogue.ids)
            for number, day in enumerate(stored):
                rows = np.arange(number * count, (number + 1) * count)
                self._days[int(day)] = item_windows(histories.take(rows), day * DAY)
        for day in days[days > self._split_day]:
            past = self._histories_after_split.filter(self._histories_after_split.times < day * DAY)
            self._days[int(day)] = item_windows(past, int(day) * DAY)

    def at(self, moment: int) -> NDArray[np.float32]:
        """Returns float32 [items, len(ITEM_WINDOWS)] as known at `moment` (ms), which must be prepared."""
        return self._days[moment // DAY]

    def _item_histories(self, days: NDArray[np.int64]) -> History:
        """Reads the item histories as of the start of each day, with all items of the first day first."""
        count = len(self._catalogue.ids)
        requests = pd.DataFrame(
            {
                columns.ITEM: list(self._catalogue.ids) * len(days),
                columns.EVENT_TIMESTAMP: _timestamps(np.repeat(days * DAY, count)),
            }
        )
        rows = feature_store.historical(self._feast, views.ITEM_WINDOWS_SERVICE, requests, before=False)
        names = {name: f"{views.ITEM_HISTORY}__{name}" for name in arrays.ITEM_COLUMNS}
        return from_arrow(rows, arrays.ITEM_COLUMNS, names=names)

    def _fold_later(self, later: pd.DataFrame, timeline: Timeline) -> History:
        """Returns the item histories at the split with the daily totals of `later` events folded in."""
        at_split = self._item_histories(np.array([timeline.split // DAY + 1]))
        fields = pa.schema([columns.SHOP_EVENTS_SCHEMA.field(name) for name in item_totals.FIELDS])
        events = later[later[columns.ITEM].isin(self._catalogue.index)]
        totals = item_totals.daily_totals(pa.Table.from_pandas(events, schema=fields, preserve_index=False))
        if not totals.num_rows:
            return at_split
        entries = {columns.TIMES: totals["day"].to_numpy()} | {
            name: totals[name].to_numpy() for name in arrays.ITEM_COLUMNS if name != columns.TIMES
        }
        rows = self._catalogue.indices(totals[columns.ITEM].to_pylist())
        return fold(at_split, rows, entries, hash_column=columns.TIMES).merged


def split_latest(rows: list[RowT], validation_share: float) -> tuple[list[RowT], list[RowT]]:
    """Splits `rows`, which are in order of time, into the earlier part and the latest `validation_share`."""
    cut = len(rows) - max(1, int(len(rows) * validation_share))
    return rows[:cut], rows[cut:]


def split_at_purchases(
    queries: list[RetrievalExample], validation_share: float
) -> tuple[list[RetrievalExample], list[RetrievalExample]]:
    """Splits `queries`, which are in order of time, for the two-tower: training, validation.

    Validation is the latest part of the queries that bought. Training is every query before the first of that part,
    whatever it did.
    """
    bought = [row for row, query in enumerate(queries) if len(query.targets)]
    start = split_latest(bought, validation_share)[1][0]
    return queries[:start], [queries[row] for row in bought if row >= start]
