"""The bench of serving, small: it builds, serves, loads and tells what it promises to tell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.apps.servers import ROOT

pytestmark = [pytest.mark.slow]


@pytest.mark.parametrize("load", [("--clients", "2"), ("--rate", "30")])
def test_the_bench_tells_speed_errors_and_the_kernels_own_times(tmp_path: Path, load: tuple[str, str]) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "infra.cli", "bench", "serve", "--items", "3000", "--dim", "16", "--candidates", "60",
            "--seconds", "1", "--workers", "1", "--folder", str(tmp_path), "--json", *load,
        ],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["errors"] == 0
    assert told["requests_per_s"] > 1
    assert 0 < told["p50_ms"] <= told["p99_ms"]
    assert set(told["kernels_cpu_ms"]) == {"feature read", "encoder", "faiss", "ranker", "json"}
    assert told["kernels_sum_cpu_ms"] == pytest.approx(sum(told["kernels_cpu_ms"].values()), abs=0.01)
    assert {one["recall_at_100"] >= 0.95 for one in told["filters"].values()} == {True}
