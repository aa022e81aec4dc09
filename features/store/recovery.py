"""How the feature job notices that the online store lost rows which it had written, and writes them anew.

Histories are folded onto what the online store says is known: a row that is lost there would be forgotten without a
word. Redis with a sync every second may lose its last writes in a crash, an emptied store has lost all.

After every micro-batch the job leaves a mark in the store, behind the rows, and remembers it in a file:

    known rows read -> servers still the same -> rows written offline, then online -> mark left in the store
        -> servers still the same -> mark remembered

A server loses its latest writes first. So a mark that is there proves that every row before it is, and a batch is
done only when no server started anew since the batch began. Where the remembered mark is missing, the newest row of
each entity is written again from the offline tables, to which every row goes first. Knows nothing of Spark.
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
    """A server of the online store started anew while rows were written: some of them may be gone."""


class ForeignStoreError(Exception):
    """The online store belongs to another data directory; says what to do."""


def refill(store: Store, *, say: Callable[[str], None] = logger.warning) -> int:
    """Write the newest offline row of every entity; a newer one that is online stays. Returns how many were read."""
    total = 0
    for view in REFILLED:
        count = 0
        for rows in newest_rows(store.get_feature_view(view)):
            write_online(store, view, rows)
            count += rows.num_rows
        say(f"online store: {count:,} rows of {view} written anew")
        total += count
    return total


class OnlineStoreGuard:
    """Watches over the rows of one data directory. Used by one feature job at a time."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._path = settings.feast_dir / MARK_FILE
        self._epoch = ""
        try:
            self._saved = json.loads(self._path.read_text())
        except FileNotFoundError:
            # Rows that were written before there were marks may be anywhere.
            mark = "" if not any((settings.offline_dir / view).exists() for view in REFILLED) else "none yet"
            self._saved = {"directory": uuid.uuid4().hex, "mark": mark, "epoch": ""}

    def check(self) -> bool:
        """Make sure that every row is there before a micro-batch reads it. True where rows that are written beside the
        micro-batches (those of items) may be out of date.

        Raises OnlineStoreError when the store does not answer, ForeignStoreError when it is somebody else's.
        """
        rows = self._store.online.rows
        self._epoch = rows.epoch()
        marks = rows.marks()
        strange = [mark for mark in marks if mark and not mark.startswith(self._saved["directory"])]
        if strange:
            raise ForeignStoreError(
                "the online store holds the features of another data directory; name another database in "
                "HEADRACE_REDIS_URL (redis://host:port/1), or empty this one with `redis-cli FLUSHDB`"
            )
        if marks != {self._saved["mark"]}:
            logger.warning("the online store lacks rows that were written; writing them anew from the offline tables")
            refill(self._store)
            self._leave("refill", after=None)
            return True
        return bool(self._epoch != self._saved["epoch"])

    def unchanged(self) -> None:
        """To be called between reading what is known and writing anything that is made of it: what a server that lost
        rows says is known must not get into the offline tables. Raises RowsLostError, OnlineStoreError."""
        if self._store.online.rows.epoch() != self._epoch:
            raise RowsLostError("the online store started anew while rows were read; doing it again")

    def confirm(self, batch: str) -> None:
        """Leave the mark behind a micro-batch whose rows are written. Raises RowsLostError when it has to be done
        again, OnlineStoreError when the store does not answer."""
        self._leave(batch, after=self._saved["mark"])

    def _leave(self, name: str, *, after: str | None) -> None:
        rows = self._store.online.rows
        mark = f"{self._saved['directory']}:{name}:{uuid.uuid4().hex}"
        if not rows.mark(mark, after=after) or rows.epoch() != self._epoch:
            raise RowsLostError("the online store started anew while rows were written; doing it again")
        self._saved = {**self._saved, "mark": mark, "epoch": self._epoch}
        with replacing(self._path) as hidden:
            hidden.write_text(json.dumps(self._saved))
