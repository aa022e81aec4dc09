"""Every night: brings the features up to date, then trains and publishes a release behind the gate.

Training publishes the models that pass the gate; the running API loads the new release by itself.
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
