"""The feature job gives the same result on a standalone Spark cluster of two workers as on one machine."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyspark
import pytest

from features.contract import columns
from features.store import views
from infra.local import processes
from infra.local.ports import free_port
from infra.log.open import open_log
from infra.settings import Settings
from tests.apps.servers import ROOT
from tests.streaming.test_job import OTHERS, SHOP, bought, paid, send, state

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="no java"),
]

WORKERS = 2
JOB_SECONDS = 400


@pytest.fixture
def master(tmp_path: Path) -> Iterator[str]:
    """Yields the address of a cluster's master, whose workers have a core each and folders named after them."""
    own = Settings(data_dir=tmp_path / "cluster")
    port = free_port()
    spark_class = str(Path(pyspark.__file__).parent / "bin" / "spark-class")
    # Executors on this machine import the checkout that is tested.
    extra = {"SPARK_LOCAL_IP": "127.0.0.1", "PYTHONPATH": str(ROOT), "SPARK_NO_DAEMONIZE": "1"}
    listen = ["--host", "127.0.0.1", "--webui-port", str(free_port())]

    def run(name: str, role: str, *words: str) -> None:
        processes.launch(own, name, [spark_class, f"org.apache.spark.deploy.{role}", *listen, *words], extra=extra)

    def logged(text: str) -> bool:
        return text in processes.log_tail(own, "master", lines=200)

    try:
        run("master", "master.Master", "--port", str(port))
        assert processes.wait_until(lambda: logged("Starting Spark master"), seconds=120), processes.log_tail(
            own, "master"
        )
        for number in range(WORKERS):
            folder = tmp_path / f"worker-{number}"
            words = ["--cores", "1", "--memory", "700m", "--work-dir", str(folder)]
            run(f"worker-{number}", "worker.Worker", *words, f"spark://127.0.0.1:{port}")
        registered = processes.wait_until(
            lambda: processes.log_tail(own, "master", lines=200).count("Registering worker") == WORKERS, seconds=120
        )
        assert registered, processes.log_tail(own, "worker-0")
        yield f"spark://127.0.0.1:{port}"
    finally:
        processes.stop_all(own)


def features(settings: Settings) -> None:
    """Runs `headrace features` in a process of its own."""
    done = subprocess.run(
        processes.command("features"), env={**processes.environment(settings), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=JOB_SECONDS, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


def tables(settings: Settings) -> dict[str, list[str]]:
    """Returns the rows of every table, without the time at which they were written."""
    rows_by_table = {}
    for folder in sorted(settings.offline_dir.iterdir()):
        rows = ds.dataset(folder).to_table().to_pylist()
        rows_by_table[folder.name] = sorted(str({**row, columns.CREATED_TIMESTAMP: None}) for row in rows)
    return rows_by_table


def test_two_workers_give_the_result_of_one_machine(master: str, tmp_path: Path) -> None:
    alone = Settings(data_dir=tmp_path / "alone", spark_driver_memory="1g")
    conf = {"spark.executor.memory": "600m", "spark.executor.cores": "1"}
    spread = Settings(data_dir=tmp_path / "spread", spark_driver_memory="1g", spark_master=master, spark_conf=conf)
    more: list[dict[str, Any]] = [
        bought(f"m{number}", number % 70, f"i{number % 9}", user=f"u{number % 13}") for number in range(400)
    ]
    for settings in (alone, spread):
        log = open_log(settings)
        send(log, *SHOP, *OTHERS, *more, *(paid(f"q{number}", 2 + number / 9) for number in range(50)), *more[:20])
        features(settings)
    assert state(spread) == state(alone)
    spread_tables, expected = tables(spread), tables(alone)
    assert spread_tables == expected
    assert set(spread_tables) >= {"shop_events", views.TRANSACTION_FEATURES, views.ITEM_HISTORY, views.ITEM_NEIGHBOURS}
    worked = [folder.name for folder in tmp_path.glob("worker-*") if list(folder.glob("app-*/*/stderr"))]
    assert len(worked) == WORKERS
