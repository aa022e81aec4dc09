"""Files that a crash or a power failure leaves whole: their content is on the disk before it gets its name.

Knows nothing of what is in them.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def sync(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden path to write to; at the end of the block it takes the place of `path`, whose folder is made.

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
