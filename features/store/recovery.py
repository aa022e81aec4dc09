"""Notices that the online store lost rows which the feature job had written, and writes them again.

Histories are folded onto the rows of the online store: a row that is lost there would be lost silently. Redis with a
sync every second may lose its last writes in a crash, an emptied store has lost all.

After every micro-batch the job leaves a mark in the store, after the rows, and saves it in a file:

    stored rows read -> servers have not restarted -> rows written offline, then online -> mark left in the store
        -> servers have not restarted -> mark saved

A server loses its latest writes first. So a mark that is there proves that every row before it is there too, and a
batch is complete only if no server restarted since the batch began. If the saved mark is missing, the newest row of
each entity is written again from the offline tables, to which every row is written first. Does not know Spark.
"""

import json
import logging
import uuid
from collections.abc import Callable

from features.store import views
from features.store.feature_store import Store, write_online
from features.store.offline import newest_rows
from features.store.online import OnlineStoreError
from infra.atomic_files import replacing
from infra.settings import Settings

logger = logging.getLogger(__name__)

REFILLED = (views.USER_HISTORY, views.CARD_HISTORY, views.TERMINAL_HISTORY, views.ITEM_HISTORY)
MARK_FILE = "online-mark.json"


class RowsLostError(OnlineStoreError):
    """Raised when a server of the online store restarted during a micro-batch, so that rows may be lost."""


class ForeignStoreError(Exception):
    """Raised when the online store belongs to another data directory; says what to do."""


def refill(store: Store, *, say: Callable[[str], None] = logger.warning) -> int:
    """Writes the newest offline row of every entity, unless the online one is newer. Returns how many were read."""
    total = 0
    for view in REFILLED:
        count = 0
        for rows in newest_rows(store.get_feature_view(view)):
            write_online(store, view, rows)
            count += rows.num_rows
        say(f"online store: {count:,} rows of {view} written again")
        total += count
    return total


class OnlineStoreGuard:
    """Guards the online rows of a data directory against loss. One feature job at a time uses it."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._path = settings.feast_dir / MARK_FILE
        self._epoch = ""
        try:
            self._saved = json.loads(self._path.read_text())
        except FileNotFoundError:
            # Rows may have been written before there were marks.
            mark = "" if not any((settings.offline_dir / view).exists() for view in REFILLED) else "none yet"
            self._saved = {"directory": uuid.uuid4().hex, "mark": mark, "epoch": ""}

    def check(self) -> bool:
        """Makes sure that every row is stored before a micro-batch reads it. Returns True if rows that are written
        beside the micro-batches (those of items) may be out of date.

        Raises OnlineStoreError when the store does not answer, ForeignStoreError when it belongs to another directory.
        """
        rows = self._store.online.rows
        self._epoch = rows.epoch()
        marks = rows.marks()
        foreign = [mark for mark in marks if mark and not mark.startswith(self._saved["directory"])]
        if foreign:
            raise ForeignStoreError(
                "the online store holds the features of another data directory; name another database in "
                "HEADRACE_REDIS_URL (redis://host:port/1), or empty this one with `redis-cli FLUSHDB`"
            )
        if marks != {self._saved["mark"]}:
            logger.warning("the online store lacks rows that were written; writing them again from the offline tables")
            refill(self._store)
            self._leave("refill", after=None)
            return True
        return bool(self._epoch != self._saved["epoch"])

    def unchanged(self) -> None:
        """Checks that no server has restarted since `check`. Called between reading stored rows and writing what
        follows from them, so that what a server lost does not get into the offline tables. Raises RowsLostError,
        OnlineStoreError."""
        if self._store.online.rows.epoch() != self._epoch:
            raise RowsLostError("the online store restarted while rows were read; the micro-batch is repeated")

    def confirm(self, batch: str) -> None:
        """Leaves the mark after a micro-batch whose rows are written. Raises RowsLostError when the micro-batch has to
        be repeated, OnlineStoreError when the store does not answer."""
        self._leave(batch, after=self._saved["mark"])

    def _leave(self, name: str, *, after: str | None) -> None:
        rows = self._store.online.rows
        mark = f"{self._saved['directory']}:{name}:{uuid.uuid4().hex}"
        if not rows.mark(mark, after=after) or rows.epoch() != self._epoch:
            raise RowsLostError("the online store restarted while rows were written; the micro-batch is repeated")
        self._saved = {**self._saved, "mark": mark, "epoch": self._epoch}
        with replacing(self._path) as hidden:
            hidden.write_text(json.dumps(self._saved))
