"""A process that another one started ends when that one is gone."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """Have this worker stop, as a terminate signal would, when the process that started it is gone: after a kill -9 of
    the parent nobody else would tell it, and it would hold its share of the port for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, args=(parent.sentinel,), name="parent", daemon=True).start()
