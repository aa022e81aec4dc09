"""`headrace bench serve`, small: it builds a shop, serves it under load, and reports all its figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.apps.servers import ROOT

pytestmark = [pytest.mark.slow]


@pytest.mark.parametrize("load", [("--clients", "2"), ("--rate", "30")])
def test_it_reports_speed_errors_and_the_times_of_the_kernels(tmp_path: Path, load: tuple[str, str]) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "infra.cli", "bench", "serve", "--items", "3000", "--dim", "16", "--candidates", "60",
            "--seconds", "1", "--workers", "1", "--folder", str(tmp_path), "--json", *load,
        ],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert result["errors"] == 0
    assert result["requests_per_s"] > 1
    assert 0 < result["p50_ms"] <= result["p99_ms"]
    assert set(result["kernels_cpu_ms"]) == {"feature read", "encoder", "faiss", "ranker", "json"}
    assert result["kernels_sum_cpu_ms"] == pytest.approx(sum(result["kernels_cpu_ms"].values()), abs=0.01)
    assert {measured["recall_at_100"] >= 0.95 for measured in result["filters"].values()} == {True}
