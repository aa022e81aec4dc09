"""Reads online features from Feast's store, which is opened on first use so that it may start later than the API."""

import threading
from collections.abc import Sequence
from typing import Any

from features.history import arrays
from features.history.arrays import History
from features.store import views
from features.store.feature_store import (
    ONLINE_FILE,
    Store,
    as_history,
    online_history,
    online_row,
    online_rows,
    open_store,
)
from features.store.online import OnlineStoreError
from infra.settings import Settings


class FeastReader:
    """Implements apps.ports.FeatureReader. One store serves all threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened: Store | None = None
        self._lock = threading.Lock()
        self.remote = bool(settings.redis_url)

    def _store(self) -> Store:
        with self._lock:
            if self._opened is None:
                online = self._settings.feast_dir / ONLINE_FILE
                if not self._settings.redis_url and not online.exists():
                    raise OnlineStoreError(f"the online store {online} does not exist; `headrace features` fills it")
                self._opened = open_store(self._settings)
            return self._opened

    def user_histories(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        return online_rows(self._store(), views.USER_HISTORY, ids)

    def user_history(self, user: str) -> History:
        return online_row(self._store(), views.USER_HISTORY, user, arrays.USER_COLUMNS)

    def item_histories(self, ids: Sequence[str]) -> History:
        return online_history(self._store(), views.ITEM_HISTORY, ids, arrays.ITEM_COLUMNS)

    def card_histories(self, ids: Sequence[str]) -> History:
        return online_history(self._store(), views.CARD_HISTORY, ids, arrays.CARD_COLUMNS)

    def terminal_histories(self, ids: Sequence[str]) -> tuple[History, History]:
        lists = self._store().online.read(views.TERMINAL_HISTORY, ids)
        frauds = as_history(lists, arrays.FRAUD_COLUMNS, names=arrays.FRAUD_NAMES)
        return as_history(lists, arrays.TERMINAL_COLUMNS), frauds
