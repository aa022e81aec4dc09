"""Writes files that a crash or a power failure leaves whole: content reaches the disk before the file gets its name.

Knows nothing of what is in them.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def sync(path: Path) -> None:
    """Flushes a file's content, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a hidden path to write to, which replaces `path` at the end of the block; creates the folder.

    A reader sees the old file or the new one; after an error in the block the old one stays, and nothing else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        yield hidden
        sync(hidden)
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
    sync(path.parent)
