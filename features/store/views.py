"""Defines all Feast objects: entities, feature views and feature services.

A history view holds the latest events of its entity as parallel arrays. Everything that depends on the present moment
(counts in a window, recency) is computed when it is read, by features/history/windows.py: a stored "7 day count" would
be wrong an hour later.
"""

from pathlib import Path

import numpy as np

from features.contract import columns
from features.fraud import velocity
from features.history import arrays, entries
from features.history.as_of import HistorySource
from features.store.feast_import import (
    Array,
    Entity,
    FeastType,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    Float64,
    Int64,
    ParquetFormat,
    String,
    ValueType,
)

PROJECT = "headrace"

USER_HISTORY = "user_history"
ITEM_HISTORY = "item_history"
ITEM_NEIGHBOURS = "item_neighbours"
CARD_HISTORY = "card_history"
TERMINAL_HISTORY = "terminal_history"
TRANSACTION_FEATURES = "transaction_features"

USER_SERVICE = "users_v1"
ITEM_WINDOWS_SERVICE = "item_windows_v1"
ITEM_NEIGHBOURS_SERVICE = "item_neighbourhood_v1"
FRAUD_SERVICE = "fraud_v1"

LIST_TYPES: dict[object, FeastType] = {np.int64: Array(Int64), np.float64: Array(Float64), object: Array(String)}
FRAUD_LISTS = (columns.FRAUD_TIMES, columns.FRAUD_KNOWN_TIMES, columns.FRAUD_HASHES)


_PAYMENT_FIELDS = (
    columns.TRANSACTION, columns.EVENT_TIMESTAMP, columns.CARD, columns.TERMINAL, "amount",
)  # fmt: skip
HISTORY_SOURCES: dict[str, tuple[HistorySource, ...]] = {
    USER_HISTORY: (
        HistorySource(
            columns.SHOP_EVENTS,
            ("type", "event_id", "event_time", "user_id", "session_id", "item_id", "quantity", "price"),
            entries.user_entries,
            cap=arrays.USER_CAP,
            horizon=arrays.USER_HORIZON,
            dtypes=arrays.USER_COLUMNS,
        ),
    ),
    CARD_HISTORY: (
        HistorySource(
            TRANSACTION_FEATURES,
            _PAYMENT_FIELDS,
            entries.from_transaction_features(entries.card_entries),
            cap=arrays.CARD_CAP,
            horizon=arrays.CARD_HORIZON,
            dtypes=arrays.CARD_COLUMNS,
        ),
    ),
    TERMINAL_HISTORY: (
        HistorySource(
            TRANSACTION_FEATURES,
            _PAYMENT_FIELDS,
            entries.from_transaction_features(entries.terminal_entries),
            cap=arrays.TERMINAL_CAP,
            horizon=arrays.TERMINAL_HORIZON,
            dtypes=arrays.TERMINAL_COLUMNS,
        ),
        HistorySource(
            columns.LABELS,
            (columns.TRANSACTION, "event_time", columns.TERMINAL, "fraud", "transaction_time"),
            entries.fraud_entries,
            cap=arrays.TERMINAL_CAP,
            horizon=arrays.TERMINAL_HORIZON,
            dtypes=arrays.FRAUD_COLUMNS,
            names=arrays.FRAUD_NAMES,
            hash_column=columns.FRAUD_HASHES,
        ),
    ),
}
"""The views without offline rows, and the tables of events from which their rows are computed."""


def _lists(dtypes: dict[str, object]) -> list[Field]:
    return [Field(name=name, dtype=LIST_TYPES[dtype]) for name, dtype in dtypes.items()]


def _view(name: str, entity: Entity, schema: list[Field], *, offline: Path, online: bool = True) -> FeatureView:
    table = HISTORY_SOURCES[name][0].table if name in HISTORY_SOURCES else name
    source = FileSource(
        name=f"{name}_source",
        path=str((offline / table).absolute()),
        file_format=ParquetFormat(),
        timestamp_field=columns.EVENT_TIMESTAMP,
        created_timestamp_column=columns.CREATED_TIMESTAMP,
    )
    return FeatureView(name=name, entities=[entity], schema=schema, source=source, online=online)


def _entity(key: str) -> Entity:
    return Entity(name=key, join_keys=[key], value_type=ValueType.STRING)


def feast_objects(offline: Path) -> list[Entity | FeatureView | FeatureService]:
    """Returns every Feast object of Headrace, with its offline tables below `offline`."""
    user, item, card, terminal, transaction = (
        _entity(key) for key in (columns.USER, columns.ITEM, columns.CARD, columns.TERMINAL, columns.TRANSACTION)
    )
    user_history = _view(USER_HISTORY, user, _lists(arrays.USER_COLUMNS), offline=offline)
    item_history = _view(ITEM_HISTORY, item, _lists(arrays.ITEM_COLUMNS), offline=offline)
    neighbours = _view(
        ITEM_NEIGHBOURS,
        item,
        [
            Field(name=columns.NEIGHBOURS, dtype=Array(String)),
            Field(name=columns.SIMILARITIES, dtype=Array(Float64)),
        ],
        offline=offline,
    )
    card_history = _view(CARD_HISTORY, card, _lists(arrays.CARD_COLUMNS), offline=offline)
    terminal_history = _view(
        TERMINAL_HISTORY,
        terminal,
        [*_lists(arrays.TERMINAL_COLUMNS), *(Field(name=name, dtype=Array(Int64)) for name in FRAUD_LISTS)],
        offline=offline,
    )
    transaction_features = _view(
        TRANSACTION_FEATURES,
        transaction,
        [Field(name=name, dtype=Float64) for name in velocity.FEATURES],
        offline=offline,
        online=False,
    )
    return [
        user, item, card, terminal, transaction,
        user_history, item_history, neighbours, card_history, terminal_history, transaction_features,
        FeatureService(name=USER_SERVICE, features=[user_history]),
        FeatureService(name=ITEM_WINDOWS_SERVICE, features=[item_history]),
        FeatureService(name=ITEM_NEIGHBOURS_SERVICE, features=[neighbours]),
        FeatureService(name=FRAUD_SERVICE, features=[transaction_features]),
    ]  # fmt: skip
