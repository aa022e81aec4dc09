"""Every morning: join what was shown to what came of it, then report one experiment.

The experiment is the parameter `experiment`, its key; another one is reported by a run with another key.
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
    # A key never begins with a dash: it must not read as an option of the command.
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
