"""Training under torchrun: two processes, with tables sharded by TorchRec, learn what one process learns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]


def torchrun(processes: int, *words: str) -> None:
    """Runs `python -m WORDS` as several processes, which meet on a free port of the loopback."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "-m", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    curves = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        torchrun(processes, "tests.training.shop_worker", str(out))
        curves.append(json.loads(out.read_text()))
    alone, together = curves
    for name in ("two-tower", "ranker"):
        assert together[name]["losses"] == pytest.approx(alone[name]["losses"], rel=1e-5)
        assert together[name]["values"] == pytest.approx(alone[name]["values"], rel=1e-4)
        assert len(set(alone[name]["losses"])) == 3, "the weights did not move"


@pytest.mark.parametrize("users", [90, 2], ids=["a part of each batch", "a process without rows"])
def test_two_processes_learn_the_sequence_model_that_one_does(tmp_path: Path, users: int) -> None:
    runs = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        words = ("--dropout", "0", "--users", str(users))
        torchrun(processes, "tests.training.benchmark.sequence_worker", str(out), *words)
        runs.append(json.loads(out.read_text()))
    alone, together = runs
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert together["values"] == pytest.approx(alone["values"], rel=1e-4)
    np.testing.assert_allclose(together["table"], alone["table"], atol=1e-4)
    assert alone["losses"][-1] < alone["losses"][0] - 0.5
