"""Every hour: brings the features up to date with the event log, and renews item windows and co-purchases."""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG
from command import RETRIES, Headrace  # type: ignore[import-not-found]

with DAG(
    "feature_refresh",
    schedule="@hourly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args=RETRIES,
    tags=["headrace", "features"],
    doc_md=__doc__,
):
    Headrace(task_id="features", words=["features"], execution_timeout=timedelta(minutes=50))
