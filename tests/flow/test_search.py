"""Tests `headrace train --search` on a small shop: `--settings` with its record makes the same models again, and two
processes try the same settings."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java; `headrace doctor` says how to get it"),
]


def headrace(data: Path, *words: str) -> str:
    """Runs a command in the data directory `data` and returns its output."""
    return run_module(data, "infra.cli", *words)


def run_module(data: Path, module: str, *words: str) -> str:
    """Runs a module in the data directory `data` and returns its output."""
    environment = {**os.environ, "HEADRACE_DATA_DIR": str(data), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", module, *words]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    return result.stdout


def record(data: Path) -> Any:
    """Returns the record of the latest run."""
    return json.loads(max((data / "runs").glob("*.json")).read_text())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with features to learn from."""
    data = tmp_path_factory.mktemp("shop")
    headrace(data, "import", "simulated", "--customers", "150", "--hold-out-days", "20")
    headrace(data, "features")
    return data


def test_a_search_chooses_by_validation_and_its_record_repeats_the_run(shop: Path, tmp_path: Path) -> None:
    shutil.copytree(shop, tmp_path, dirs_exist_ok=True)
    output = headrace(tmp_path, "train", "small", "--search", "6")
    first = record(tmp_path)
    for label, part, metric in (("two-tower", "retrieval", "recall@100"), ("ranker", "ranker", "ndcg@20")):
        tries = [result for result in first["search"] if result["label"] == label]
        best = max(tries, key=lambda result: result["value"])
        assert len(tries) > 1
        assert first["config"][part] == best["settings"]
        summary = re.search(rf"search {label}: .* validation {metric} ([\d.]+) at the start, ([\d.]+) at best", output)
        assert summary, output
        assert float(summary[1]) == pytest.approx(tries[0]["value"], abs=1e-4)
        assert float(summary[2]) == pytest.approx(best["value"], abs=1e-4)
    assert not (tmp_path / "runs" / "unfinished").exists()

    again = headrace(tmp_path, "train", "--settings", str(max((tmp_path / "runs").glob("*.json"))))
    repeated = record(tmp_path)
    assert repeated["manifest"]["version"] != first["manifest"]["version"]
    assert repeated["config"] == first["config"]
    assert repeated["search"] == []
    for name, curve in first["curves"].items():
        assert repeated["curves"][name]["losses"] == pytest.approx(curve["losses"], rel=1e-4)
    assert re.findall(r"ndcg@20: .*", again) == re.findall(r"ndcg@20: .*", output.split("ranker:", 1)[1])


@pytest.mark.cluster
def test_two_processes_try_the_same_settings(shop: Path, tmp_path: Path) -> None:
    shutil.copytree(shop, tmp_path, dirs_exist_ok=True)
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1")
    worker = ("-m", "tests.flow.search_worker", str(tmp_path), "20")
    run_module(tmp_path, "torch.distributed.run", "--nproc-per-node", "2", *meeting, *worker)
    tries, other_tries = (json.loads((tmp_path / f"tried-{rank}.json").read_text()) for rank in (0, 1))
    assert tries == other_tries, "settings, values and seconds"
    for label in ("two-tower", "ranker"):
        values = [result["value"] for result in tries if result["label"] == label]
        assert len(values) > 1
        assert len(set(values)) > 1, "the settings made no difference"
    first = record(tmp_path)
    assert first["search"] == tries
    assert len(list((tmp_path / "releases").glob("2*"))) == 1, "one process publishes"
