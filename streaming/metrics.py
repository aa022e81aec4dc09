"""Defines every Prometheus metric of the feature job, and serves them from its driver."""

import contextlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client import Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300)

BATCH_SECONDS = Histogram("headrace_stream_batch_seconds", "Time to handle a micro-batch.", buckets=_SECONDS)
RECORDS = Counter("headrace_stream_records_total", "Records read from the event log.", ["topic"])
REJECTED = Counter("headrace_stream_dead_letters_total", "Records that could not be used.", ["reason"])
LAG_SECONDS = Gauge(
    "headrace_stream_lag_seconds", "From the log to the feature store, for the oldest record of the last micro-batch."
)
LAST_BATCH = Gauge("headrace_stream_last_batch_timestamp_seconds", "When a micro-batch was last finished.")
RENEWAL_SECONDS = Histogram("headrace_stream_renewal_seconds", "Time to renew a table.", ["table"], buckets=_SECONDS)
RENEWALS_FAILED = Counter("headrace_stream_renewals_failed_total", "Renewals that failed and were tried again.")


def record_batch(events: pa.Table, *, seconds: float, now: float) -> None:
    """Counts a micro-batch as streaming.parsing.parse returns it. now: seconds since the epoch."""
    BATCH_SECONDS.observe(seconds)
    for topic, count in _counts(events["topic"]):
        RECORDS.labels(topic).inc(count)
    for reason, count in _counts(events["reason"].drop_null()):
        REJECTED.labels(reason).inc(count)
    oldest = pc.min(events["timestamp"]).as_py()
    if oldest is not None:
        LAG_SECONDS.set(max(0.0, now - oldest / 1000))
        LAST_BATCH.set(now)


def _counts(values: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    for entry in values.value_counts().to_pylist():
        yield entry["values"], entry["counts"]


@contextlib.contextmanager
def served(port: int, *, host: str) -> Iterator[None]:
    """Serves the metrics at /metrics of `host` and `port` within the context; not at all for port 0."""
    if not port:
        yield
        return
    server, thread = start_http_server(port, addr=host)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
