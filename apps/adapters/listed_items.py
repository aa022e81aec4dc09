"""Reads the items that were listed after a release was made from the table that the feature job writes."""

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

from apps.ports import ListedItem
from features.contract import columns
from infra.settings import Settings

logger = logging.getLogger(__name__)

COLUMNS = ["event_time", "item_id", "title", "price", "category"]


class NewItems:
    """Reads the table again only when its files change."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.offline_dir / columns.SHOP_EVENTS
        self._read: tuple[int, frozenset[Path]] | None = None
        self._listed: list[ListedItem] = []

    def since(self, moment: int) -> list[ListedItem]:
        """Returns the items listed after `moment` (ms), each as it was listed last, the latest last."""
        files = frozenset(self._folder.glob("*.parquet")) if self._folder.is_dir() else frozenset()
        if self._read == (moment, files):
            return self._listed
        listed: dict[str, ListedItem] = {}
        if files:
            table = ds.dataset(sorted(map(str, files)), format="parquet").to_table(
                columns=COLUMNS, filter=(ds.field("type") == "item") & (ds.field("event_time") > moment)
            )
            for row in _rows(table):
                listed.pop(row.item_id, None)
                listed[row.item_id] = row
        self._read, self._listed = (moment, files), list(listed.values())
        return self._listed


def _rows(table: pa.Table) -> list[ListedItem]:
    return [
        ListedItem(str(row["item_id"]), row["title"] or "", float(row["price"] or 0), row["category"] or "")
        for row in table.sort_by("event_time").to_pylist()
    ]
