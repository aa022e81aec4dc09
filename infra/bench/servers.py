"""Starts the servers that a benchmark measures, in a folder of their own, and stops them with it.

They are embedded (files and SQLite) or real (Kafka and Redis, as `headrace up` starts them) and serve a small sample
release, because benchmarks of the event path measure no model.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from features.store.feature_store import open_store
from infra.bench.sample_release import publish_release
from infra.local import processes, stack
from infra.local.ports import free_port, free_ports
from infra.settings import Settings


@contextlib.contextmanager
def serving(*, real: bool) -> Iterator[Settings]:
    """Runs API, scorer and feature job; yields their settings once they are ready."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        settings = Settings(
            data_dir=Path(folder),
            port=free_port(),
            scorer_metrics_port=free_port(),
            stream_metrics_port=free_port(),
            log_level="ERROR",
            tools_dir=Settings().tools_dir.absolute(),
        )
        publish_release(settings.releases_dir, "bench")
        try:
            if real:
                ports = {"redis_port": free_port(), "kafka_port": free_ports(2)}
                settings = stack.stack_settings(settings.model_copy(update=ports))
                stack.up(settings, airflow=False, say=lambda line: None)
            else:
                open_store(settings)
                for name, command in (("stream", "stream"), ("scorer", "score"), ("api", "serve")):
                    processes.start(settings, name, command)
                for name in ("stream", "scorer", "api"):
                    stack.wait_for(settings, name)
            yield settings
        finally:
            processes.stop_all(settings)


@contextlib.contextmanager
def api(settings: Settings) -> Iterator[psutil.Process]:
    """Runs the API alone; yields its process, whose children are the workers, once it is ready."""
    pid = processes.start(settings, "api", "serve")
    try:
        stack.wait_for(settings, "api")
        yield psutil.Process(pid)
    finally:
        processes.stop_all(settings)
