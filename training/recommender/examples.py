"""What the recommenders learn from: visits, each with what was known of its user just before it.

States come from Feast as of each visit's first moment, so that nothing of a visit tells of itself. For visits that the
importer held back, they are folded from the last known state and the held-back events before them: the same arithmetic
as the Spark job's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True)
class RetrievalExample:
    """One visit as a recommender meets it: who asks, and what they then bought (catalogue indices)."""

    visitor: Visitor
    targets: NDArray[np.int64]
    auxiliary_targets: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """What else the visit did, by kind: "view", "cart", and "return" for what of the bought came back."""


@dataclass(frozen=True, slots=True)
class RankingExample:
    """One visit's candidates, and which of them were bought."""

    candidates: Candidates
    bought: NDArray[np.bool_]
    auxiliary_labels: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Which of them it also viewed, put into the cart or returned; kinds that are not told are none."""


def read_events(settings: Settings, *, split: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Shop events before `split` (ms) and from it on, each event once, in order of time; the catalogue comes first."""
    tables = [ds.dataset(settings.offline_dir / columns.SHOP_EVENTS).to_table()]
    if holdout_file(settings).exists():
        tables.append(pq.read_table(holdout_file(settings)))
    events = pa.concat_tables(tables).to_pandas().drop_duplicates("event_id")
    events = events.sort_values("event_time", kind="stable").reset_index(drop=True)
    early = (events["event_time"] < split) | (events["type"] == "item")
    return events[early], events[~early]


def _timestamps(moments: NDArray[np.int64]) -> pd.Series:
    return pd.to_datetime(pd.Series(moments), unit="ms", utc=True)


def build_catalogue(
    feast: FeatureStore,
    events: pd.DataFrame,
    *,
    neighbours_as_of: int,
    vectors: NDArray[np.float32] | None = None,
) -> Catalogue:
    """The items bought in `events`, with their neighbours as of a moment (ms). `vectors`: shape [items, D]."""
    bought = events[events["type"] == "purchase"]
    ids = sorted(bought[columns.ITEM].unique())
    listed = events[events["type"] == "item"].drop_duplicates(columns.ITEM, keep="last").set_index(columns.ITEM)
    titles = listed["title"].reindex(ids).fillna("").tolist()
    categories = listed["category"].reindex(ids).fillna("").tolist()
    prices = bought.groupby(columns.ITEM)["price"].last().reindex(ids).fillna(0.0).to_numpy(np.float32)
    index = {name: place for place, name in enumerate(ids)}
    moments = pd.DataFrame(
        {columns.ITEM: ids, columns.EVENT_TIMESTAMP: _timestamps(np.full(len(ids), neighbours_as_of))}
    )
    rows = feature_store.historical(feast, views.ITEM_NEIGHBOURS_SERVICE, moments, before=False)
    near = from_arrow(
        rows,
        {columns.TIMES: object, columns.SIMILARITIES: np.float64},
        names={
            columns.TIMES: f"{views.ITEM_NEIGHBOURS}__{columns.NEIGHBOURS}",
            columns.SIMILARITIES: f"{views.ITEM_NEIGHBOURS}__{columns.SIMILARITIES}",
        },
    )
    width = int(near.lengths.max()) if len(near) and len(near.times) else 1
    neighbours = np.full((len(ids), width), -1, dtype=np.int32)
    similarities = np.zeros((len(ids), width), dtype=np.float32)
    place = np.arange(len(near.times)) - np.repeat(near.offsets[:-1], near.lengths)
    known = np.array([index.get(name, -1) for name in near.times], dtype=np.int32)
    neighbours[near.row_of_entry, place] = known
    similarities[near.row_of_entry, place] = np.where(known >= 0, near.entries[columns.SIMILARITIES], 0)
    if vectors is None:
        vectors = np.zeros((len(ids), 1), dtype=np.float32)
    kinds = tuple(categories) if any(categories) else ()
    return Catalogue(tuple(ids), tuple(titles), prices, neighbours, similarities, vectors, index, kinds)


def histories_from_feast(feast: FeatureStore, visits: Visits) -> History:
    """The user histories just before each visit, one row a visit."""
    return _states(feast, visits.users, visits.times)


def _states(feast: FeatureStore, users: NDArray[np.object_], times: NDArray[np.int64]) -> History:
    examples = pd.DataFrame({columns.USER: users, columns.EVENT_TIMESTAMP: _timestamps(times)})
    found = feature_store.historical(feast, views.USER_SERVICE, examples, before=True)
    names = {name: f"{views.USER_HISTORY}__{name}" for name in arrays.USER_COLUMNS}
    return from_arrow(found, arrays.USER_COLUMNS, names=names)


def histories_held_back(feast: FeatureStore, visits: Visits, later: pd.DataFrame, *, split: int) -> History:
    """The same for visits after `split`: the state at `split`, and what the held-back events add before each visit."""
    users, key = np.unique(visits.users, return_inverse=True)
    known = _states(feast, users, np.full(len(users), split))
    place = {name: row for row, name in enumerate(users)}
    new = user_entries(pa.Table.from_pandas(later[later[columns.USER].isin(place)], preserve_index=False))
    row = np.array([place[name] for name in new.keys.to_pylist()], dtype=np.int64)
    merged = fold(known, row, {**new.numeric, columns.ITEMS: new.strings[columns.ITEMS].to_numpy()}).merged
    return merged.at(key, visits.times - 1, cap=arrays.USER_CAP, horizon=arrays.USER_HORIZON)


def retrieval_examples(visits: Visits, states: History, catalogue: Catalogue) -> list[RetrievalExample]:
    """Visits with their states, as queries; items that the catalogue does not know are no targets."""
    # Each id is looked up once for all visits: one by one, the look-ups took longer than a model's epoch.
    codes, names = pd.factorize(states.entries[columns.ITEMS], use_na_sentinel=False)
    known = History(states.offsets, states.entries | {columns.ITEMS: catalogue.indices(names)[codes]})
    did = {kind: _coded(lists, catalogue) for kind, lists in visits.items.items()}
    return [
        RetrievalExample(
            visitor_from_indices(known.row(row), at=int(visits.times[row])),
            did["purchase"][row],
            {kind: lists[row] for kind, lists in did.items() if kind != "purchase"},
        )
        for row in range(len(visits))
    ]


def _coded(lists: list[NDArray[np.object_]], catalogue: Catalogue) -> list[NDArray[np.int64]]:
    """Catalogue indices, ascending and each once."""
    codes, names = pd.factorize(np.concatenate([*lists, np.empty(0, dtype=object)]), use_na_sentinel=False)
    found = np.split(catalogue.indices(names)[codes], np.cumsum([len(items) for items in lists])[:-1])
    return [np.unique(one[one >= 0]) for one in found]


class ItemWindowsByDay:
    """Item windows of the catalogue for any day, from Feast up to the split and from held-back events after it."""

    def __init__(self, feast: FeatureStore, catalogue: Catalogue, later: pd.DataFrame, timeline: Timeline) -> None:
        self._feast = feast
        self._catalogue = catalogue
        self._split_day = timeline.split // DAY
        self._later = self._fold_later(later, timeline)
        self._days: dict[int, NDArray[np.float32]] = {}

    def prepare(self, moments: NDArray[np.int64]) -> None:
        """Fetch the days of these moments (ms) in one go."""
        days = np.setdiff1d(np.unique(moments // DAY), list(self._days))
        known = days[days <= self._split_day]
        if len(known):
            rows = self._known(known)
            count = len(self._catalogue.ids)
            for place, day in enumerate(known):
                self._days[int(day)] = item_windows(rows.take(np.arange(place * count, (place + 1) * count)), day * DAY)
        for day in days[days > self._split_day]:
            past = self._later.filter(self._later.times < day * DAY)
            self._days[int(day)] = item_windows(past, int(day) * DAY)

    def at(self, moment: int) -> NDArray[np.float32]:
        """item_windows, float32 [items, len(ITEM_WINDOWS)], as known at `moment` (ms), which must be prepared."""
        return self._days[moment // DAY]

    def _known(self, days: NDArray[np.int64]) -> History:
        """Rows of arrays.ITEM_COLUMNS as of the start of each day, all items of the first day first."""
        count = len(self._catalogue.ids)
        examples = pd.DataFrame(
            {
                columns.ITEM: list(self._catalogue.ids) * len(days),
                columns.EVENT_TIMESTAMP: _timestamps(np.repeat(days * DAY, count)),
            }
        )
        found = feature_store.historical(self._feast, views.ITEM_WINDOWS_SERVICE, examples, before=False)
        names = {name: f"{views.ITEM_HISTORY}__{name}" for name in arrays.ITEM_COLUMNS}
        return from_arrow(found, arrays.ITEM_COLUMNS, names=names)

    def _fold_later(self, later: pd.DataFrame, timeline: Timeline) -> History:
        known = self._known(np.array([timeline.split // DAY + 1]))
        fields = pa.schema([columns.SHOP_EVENTS_SCHEMA.field(name) for name in item_totals.FIELDS])
        listed = later[later[columns.ITEM].isin(self._catalogue.index)]
        totals = item_totals.daily_totals(pa.Table.from_pandas(listed, schema=fields, preserve_index=False))
        if not totals.num_rows:
            return known
        entries = {columns.TIMES: totals["day"].to_numpy()} | {
            name: totals[name].to_numpy() for name in arrays.ITEM_COLUMNS if name != columns.TIMES
        }
        key = self._catalogue.indices(totals[columns.ITEM].to_pylist())
        return fold(known, key, entries, hash_column=columns.TIMES).merged
