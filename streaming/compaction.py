"""Many small files of a table into few large ones, beside the stream: a reader opens thousands where hundreds would do.

Every micro-batch adds a file to each table that it touches. FILES of one level become one of the next, which is named
after the last of them, so that the order of the names stays the order of arrival. The small ones stay for a while, for
somebody may be reading them; meanwhile events stand in the table twice, which readers allow for: a micro-batch that
is done again does the same. Knows nothing of what is in the tables.
"""

import bisect
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from infra.atomic_files import replacing
from streaming.tables import ROW_GROUP

FILES = 64
"""So many files of one level are made one."""
GRACE_SECONDS = 900.0
"""How long files stay whose rows stand in another: longer than anybody reads a table for."""

_NAME = re.compile(r"(batch-(\d+))(?:-joined-(\d+)|-again-\d+)?\.parquet")


class _File(NamedTuple):
    number: int
    """Of the last micro-batch whose rows are in it."""
    level: int
    path: Path


def compact(folder: Path, *, clock: Callable[[], float] = time.time) -> int:
    """Join the oldest files of one level where there are enough, and remove those that were joined long ago. Returns
    how many files were joined or removed. clock: seconds since the epoch."""
    files = _files(folder)
    changed = 0
    for level in sorted({one.level for one in files}):
        joined = [one for one in files if one.level > level]
        numbers = [one.number for one in joined]
        own = [one for one in files if one.level == level]
        places = [bisect.bisect_left(numbers, one.number) for one in own]
        alone = [one for one, place in zip(own, places, strict=True) if place == len(joined)]
        for one, place in zip(own, places, strict=True):
            if place < len(joined) and clock() - joined[place].path.stat().st_mtime > GRACE_SECONDS:
                one.path.unlink(missing_ok=True)
                changed += 1
        # The micro-batch that came last may be done again, and then adds a file of its number.
        ready = [one for one in alone if one.number < files[-1].number]
        if len(ready) >= FILES:
            last = ready[FILES - 1].number
            together = [one for one in ready if one.number <= last]
            _join(folder, together, level=level + 1)
            changed += len(together)
    return changed


def _files(folder: Path) -> list[_File]:
    found = []
    for path in folder.glob("batch-*.parquet"):
        told = _NAME.fullmatch(path.name)
        if told:
            found.append(_File(int(told[2]), int(told[3] or 0), path))
    return sorted(found)


def _join(folder: Path, files: list[_File], *, level: int) -> None:
    """One file of all rows, in their order, a row group at a time."""
    table = ds.dataset([str(one.path) for one in files], format="parquet")
    name = f"batch-{files[-1].number:012d}-joined-{level}.parquet"
    with (
        replacing(folder / name) as hidden,
        pq.ParquetWriter(hidden, table.schema, compression="zstd", compression_level=1) as writer,
    ):
        for rows in _groups(table):
            writer.write_table(rows, row_group_size=ROW_GROUP)


def _groups(table: ds.Dataset) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    for batch in table.to_batches():
        waiting.append(batch)
        if sum(one.num_rows for one in waiting) >= ROW_GROUP:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)
