"""Defines every Prometheus metric of the API and the scorer, and renders the page that shows them.

With several API processes each keeps its numbers in files of one folder, and the one that is asked adds them up
(prometheus_client's multiprocess mode). docs/operations.md says what each is for.
"""

import contextlib
import re
from pathlib import Path

import psutil
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_LAG_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

REQUEST_SECONDS = Histogram(
    "headrace_request_seconds", "Time until an answer began.", ["method", "route", "status"], buckets=_SECONDS
)
IN_FLIGHT = Gauge("headrace_requests_in_flight", "Requests being answered.", multiprocess_mode="livesum")
QUEUE_SECONDS = Histogram(
    "headrace_queue_seconds", "Time a request waited for its turn.", ["priority"], buckets=_SECONDS
)
SHED = Counter("headrace_requests_shed_total", "Requests refused with 503 because of overload.", ["priority"])

EVENTS = Counter("headrace_events_total", "Events sent to POST /v1/events.", ["status"])
EVENTS_REFUSED = Counter("headrace_events_refused_total", "Refused events, by the field that was wrong.", ["field"])
RECOMMENDATIONS = Counter(
    "headrace_recommendations_total", "Answers of POST /v1/recommend.", ["surface", "model", "degraded"]
)
IMPRESSIONS_LOST = Counter(
    "headrace_impressions_lost_total", "Impressions that neither the event log nor the spool could take."
)
SPOOL_RECORDS = Gauge("headrace_spool_records", "Impressions that wait for the event log.", multiprocess_mode="livesum")
SPOOL_BYTES = Gauge("headrace_spool_bytes", "What the waiting impressions take.", multiprocess_mode="livesum")
DRIFT = Gauge(
    "headrace_drift_psi",
    "Population stability index of a model input against training.",
    ["model", "feature"],
    multiprocess_mode="livemax",
)

RELEASE = Gauge("headrace_release_info", "Processes that serve this release.", ["version"], multiprocess_mode="livesum")
LOG_BYTES = Gauge("headrace_log_bytes", "Size of a topic of the log.", ["topic"], multiprocess_mode="livemostrecent")
FEATURE_AGE_SECONDS = Gauge(
    "headrace_feature_age_seconds",
    "Time since the feature job last finished a micro-batch; -1 before the first.",
    multiprocess_mode="livemostrecent",
)

FRAUD_SECONDS = Histogram("headrace_fraud_seconds", "Time to score one call's payments.", buckets=_SECONDS)
DECISIONS = Counter("headrace_fraud_decisions_total", "Scored payments.", ["outcome", "degraded"])
DECISION_LAG_SECONDS = Histogram(
    "headrace_scorer_lag_seconds", "From a payment in the log to its decision in the log.", buckets=_LAG_SECONDS
)
SCORER_BEHIND = Gauge(
    "headrace_scorer_behind_records",
    "Payments in the log that the scorer has not decided; at most 10,000 are counted.",
    multiprocess_mode="livemax",
)
SCORER_HISTORY = Counter("headrace_scorer_history_total", "Payments that came too late for a decision")
SCORER_REFUSED = Counter("headrace_scorer_dead_letters_total", "Payments that could not be scored.", ["reason"])


def exposition(processes: Path | None) -> bytes:
    """Returns all metrics as text: of this process, or of all that keep their numbers in the folder `processes`."""
    if processes is None:
        return generate_latest(REGISTRY)
    forget_dead(processes)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(processes))  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def forget_dead(processes: Path) -> None:
    """Drops the gauges of processes that died; what they counted stays."""
    for path in processes.glob("gauge_live*.db"):
        match = re.fullmatch(r"gauge_live\w+?_(\d+)\.db", path.name)
        if match and not psutil.pid_exists(int(match[1])):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
