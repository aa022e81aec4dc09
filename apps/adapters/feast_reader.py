"""Online features from Feast. Opening the store is tried again on use, so that it may come up later than the API."""

import threading
from collections.abc import Sequence
from typing import Any

from features import views
from features.feast_import import FeatureStore
from features.store import online_rows, open_store
from infra.settings import Settings


class FeastReader:
    """One store for each thread, for Feast's SQLite connections are not to be shared."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._local = threading.local()

    def _store(self) -> FeatureStore:
        online = self._settings.feast_dir / "online.db"
        if not online.exists():
            self._local.store = None
            raise FileNotFoundError(f"the online store {online} does not exist; `headrace features` fills it")
        if getattr(self._local, "store", None) is None:
            self._local.store = open_store(self._settings)
        return self._local.store

    def user_histories(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        return online_rows(self._store(), views.USER_HISTORY, ids)

    def item_histories(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        return online_rows(self._store(), views.ITEM_HISTORY, ids)

    def card_histories(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        return online_rows(self._store(), views.CARD_HISTORY, ids)

    def terminal_histories(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        return online_rows(self._store(), views.TERMINAL_HISTORY, ids)
