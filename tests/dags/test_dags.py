"""Runs each DAG with `airflow dags test` in Airflow's own environment, and checks its commands and their order.

A recording script replaces `headrace`, so these tests cover the DAGs only.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AIRFLOW = ROOT / ".venv-dags" / "bin" / "airflow"
HEADRACE = ROOT / ".venv" / "bin" / "headrace"
DAGS = sorted(path for path in (ROOT / "dags").glob("*.py") if path.stem not in ("__init__", "command"))

EXPECTED = {
    "feature_refresh": [["features"]],
    "retrain": [["features"], ["train"]],
    "experiment_report": [["exposures"], ["report", "ranker"]],
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
needs_airflow = pytest.mark.skipif(not AIRFLOW.exists(), reason="Airflow is not installed: run `make setup-dags`")

RECORDER = """#!{python}
import json, os, pathlib, sys
folder = pathlib.Path(__file__).parent
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
print("this is", *sys.argv[1:])
fails = folder / ("fail-" + sys.argv[1])
if fails.exists() and (left := int(fails.read_text())):
    fails.write_text(str(left - 1))
    sys.exit("no luck today")
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Returns a function that runs `airflow <words>` with a database of this module's own."""
    home = tmp_path_factory.mktemp("airflow")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "HEADRACE"))}
    base = inherited | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "HEADRACE_RETRY_SECONDS": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def run(*words: str, executable: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = base | ({"HEADRACE_BIN": str(executable)} if executable else {})
        return subprocess.run(
            [AIRFLOW, *words], env=environment, cwd=home, capture_output=True, text=True, timeout=300, check=False
        )

    migrated = run("db", "migrate")
    assert migrated.returncode == 0, migrated.stderr[-2000:]
    return run


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    path = tmp_path / "headrace"
    path.write_text(RECORDER.format(python=sys.executable))
    path.chmod(0o755)
    return path


def recorded(recorder: Path) -> list[list[str]]:
    calls = recorder.with_name("calls")
    return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


def test_every_dag_is_expected_here() -> None:
    assert {path.stem for path in DAGS} == set(EXPECTED)


@needs_airflow
@pytest.mark.parametrize("dag", EXPECTED)
def test_runs_its_commands_in_order(airflow: Run, recorder: Path, dag: str) -> None:
    result = airflow("dags", "test", dag, executable=recorder)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert recorded(recorder) == EXPECTED[dag]
    assert "this is " + " ".join(EXPECTED[dag][-1]) in result.stdout + result.stderr


@needs_airflow
def test_reports_the_experiment_that_the_run_names(airflow: Run, recorder: Path) -> None:
    result = airflow("dags", "test", "experiment_report", "--conf", '{"experiment": "home.v2"}', executable=recorder)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert recorded(recorder)[-1] == ["report", "home.v2"]


@needs_airflow
def test_a_command_that_fails_is_retried_then_fails_the_run_before_what_follows(airflow: Run, recorder: Path) -> None:
    recorder.with_name("fail-features").write_text("9")
    result = airflow("dags", "test", "retrain", executable=recorder)
    assert result.returncode != 0
    assert recorded(recorder) == [["features"]] * 3
    assert "no luck today" in result.stdout + result.stderr


@pytest.mark.skipif(not HEADRACE.exists(), reason="the command line is not installed: run `make setup`")
def test_names_only_commands_that_the_command_line_has() -> None:
    listed = subprocess.run([HEADRACE, "--help"], capture_output=True, text=True, check=True).stdout
    existing = set(re.findall(r"^\s+([a-z][a-z-]*)\b", listed, flags=re.MULTILINE))
    assert {words[0] for commands in EXPECTED.values() for words in commands} <= existing
