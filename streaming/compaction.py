"""Joins many small files of a table into few large ones, beside the stream, so that readers open fewer files.

Every micro-batch adds a file to each table that it touches. FILES files of a level become a file of the next level. It
is named after the last of them, so that the order of the names stays the order of arrival. The small files stay for a
while, because somebody may be reading them. Meanwhile the table holds their events twice, which readers allow for: a
repeated micro-batch has the same effect. Does not know what the tables hold.
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
"""So many files of a level are joined."""
GRACE_SECONDS = 900.0
"""How long joined files stay: longer than anybody reads a table."""

_NAME = re.compile(r"(batch-(\d+))(?:-joined-(\d+)|-again-\d+)?\.parquet")


class _File(NamedTuple):
    number: int
    """The number of the last micro-batch with rows in the file."""
    level: int
    path: Path


def compact(folder: Path, *, clock: Callable[[], float] = time.time) -> int:
    """Joins the oldest files of a level if there are enough, and removes those that were joined long ago. Returns how
    many files were joined or removed. clock: seconds since the epoch."""
    files = _files(folder)
    changed = 0
    for level in sorted({file.level for file in files}):
        joined = [file for file in files if file.level > level]
        numbers = [file.number for file in joined]
        waiting = []
        for file in [file for file in files if file.level == level]:
            index = bisect.bisect_left(numbers, file.number)  # of the joined file that holds its rows
            if index == len(joined):
                waiting.append(file)
            elif clock() - joined[index].path.stat().st_mtime > GRACE_SECONDS:
                file.path.unlink(missing_ok=True)
                changed += 1
        # The last micro-batch may be repeated, and then adds a file of its number.
        ready = [file for file in waiting if file.number < files[-1].number]
        if len(ready) >= FILES:
            last = ready[FILES - 1].number
            together = [file for file in ready if file.number <= last]
            _join(folder, together, level=level + 1)
            changed += len(together)
    return changed


def _files(folder: Path) -> list[_File]:
    matches = [(path, _NAME.fullmatch(path.name)) for path in folder.glob("batch-*.parquet")]
    return sorted(_File(int(match[2]), int(match[3] or 0), path) for path, match in matches if match)


def _join(folder: Path, files: list[_File], *, level: int) -> None:
    """Writes all rows into a file, in their order, a row group at a time."""
    table = ds.dataset([str(file.path) for file in files], format="parquet")
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
        if sum(part.num_rows for part in waiting) >= ROW_GROUP:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)
