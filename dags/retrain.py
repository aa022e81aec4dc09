"""Every night: catch the features up, then train, evaluate behind the gate and publish a release.

Training publishes by itself what passed the gate; the running API picks the new release up.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, chain
from command import RETRIES, Headrace  # type: ignore[import-not-found]

with DAG(
    "retrain",
    schedule="30 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args=RETRIES,
    tags=["headrace", "training"],
    doc_md=__doc__,
):
    chain(
        Headrace(task_id="features", words=["features"], execution_timeout=timedelta(hours=2)),
        Headrace(task_id="train", words=["train"], execution_timeout=timedelta(hours=12)),
    )
