"""`headrace train --search` on a small shop, and its record taken by `--settings`: the same models again."""

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
    """What the command says, in the data directory `data`."""
    environment = {**os.environ, "HEADRACE_DATA_DIR": str(data), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "infra.cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def record(data: Path) -> Any:
    """Of the latest run."""
    return json.loads(max((data / "runs").glob("*.json")).read_text())


def test_a_search_chooses_by_validation_and_its_record_repeats_the_run(tmp_path: Path) -> None:
    headrace(tmp_path, "import", "simulated", "--customers", "150", "--hold-out-days", "20")
    headrace(tmp_path, "features")
    said = headrace(tmp_path, "train", "small", "--search", "6")
    found = record(tmp_path)
    for label, part, metric in (("two-tower", "retrieval", "recall@100"), ("ranker", "ranker", "ndcg@20")):
        tries = [one for one in found["search"] if one["label"] == label]
        best = max(tries, key=lambda one: one["value"])
        assert len(tries) > 1
        assert found["config"][part] == best["settings"]
        told = re.search(rf"search {label}: .* validation {metric} ([\d.]+) as it was, ([\d.]+) at best", said)
        assert told, said
        assert float(told[1]) == pytest.approx(tries[0]["value"], abs=1e-4)
        assert float(told[2]) == pytest.approx(best["value"], abs=1e-4)
    assert not (tmp_path / "runs" / "unfinished").exists()

    again = headrace(tmp_path, "train", "--settings", str(max((tmp_path / "runs").glob("*.json"))))
    repeated = record(tmp_path)
    assert repeated["manifest"]["version"] != found["manifest"]["version"]
    assert repeated["config"] == found["config"]
    assert repeated["search"] == []
    for name, curve in found["curves"].items():
        assert repeated["curves"][name]["losses"] == pytest.approx(curve["losses"], rel=1e-4)
    assert re.findall(r"ndcg@20: .*", again) == re.findall(r"ndcg@20: .*", said.split("ranker:", 1)[1])
