"""Every Prometheus metric of the API, named once. Scraped at GET /metrics."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

REQUEST_SECONDS = Histogram(
    "headrace_request_seconds", "Time to answer a request.", ["method", "route", "status"], buckets=_SECONDS
)
EVENTS = Counter("headrace_events_total", "Events sent to POST /v1/events.", ["status"])
RECOMMENDATIONS = Counter(
    "headrace_recommendations_total", "Answers of POST /v1/recommend.", ["surface", "model", "degraded"]
)
IMPRESSIONS_LOST = Counter("headrace_impressions_lost_total", "Impressions that the event log refused.")
RELEASE = Gauge("headrace_release_info", "1 for the release that is served.", ["version"])
FEATURE_AGE_SECONDS = Gauge("headrace_feature_age_seconds", "Time since the feature job last finished a micro-batch.")
