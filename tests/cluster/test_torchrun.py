"""Training under torchrun on this machine: two processes, their tables divided by TorchRec, learn what one learns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from features.manifest import read_release
from tests.training.test_data import Shop, made_up
from training.publish import versions

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]


def torchrun(processes: int, *words: str, data_dir: Path | None = None) -> str:
    """What `python -m WORDS` printed as so many processes; they meet on a free port of the loopback."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "-m", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HEADRACE_LOG_LEVEL": "ERROR"}
    environment |= {"HEADRACE_DATA_DIR": str(data_dir)} if data_dir else {}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


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


def test_two_processes_publish_one_release(tmp_path: Path) -> None:
    settings = Shop(tmp_path, made_up(orders=400), hold_back=True).settings
    printed = torchrun(2, "infra.cli", "train", "small", data_dir=tmp_path)
    (version,) = versions(settings.releases_dir)
    assert printed.count("published") == 1
    _, manifest = read_release(settings.releases_dir, version)
    assert manifest.recommend is not None
    record = json.loads((settings.runs_dir / f"{version}.json").read_text())
    assert set(record["curves"]) == {"two-tower 1/2", "ranker", "two-tower 2/2"}
    assert not (settings.runs_dir / "unfinished").exists()
