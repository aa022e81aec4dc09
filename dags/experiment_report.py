"""Every morning: joins impressions to their outcomes, then reports one experiment.

The parameter `experiment` is the key of the experiment; run the DAG with another key to report another one.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param, chain
from command import RETRIES, Headrace  # type: ignore[import-not-found]

with DAG(
    "experiment_report",
    schedule="0 6 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args=RETRIES,
    # A key must not begin with a dash, because the command would read it as an option.
    params={"experiment": Param("ranker", type="string", pattern=r"^[A-Za-z0-9_.:][A-Za-z0-9_.:-]{0,63}$")},
    tags=["headrace", "experiments"],
    doc_md=__doc__,
):
    chain(
        Headrace(task_id="exposures", words=["exposures"], execution_timeout=timedelta(hours=1)),
        Headrace(
            task_id="report", words=["report", "{{ params.experiment }}"], execution_timeout=timedelta(minutes=30)
        ),
    )
