"""Tests that a killed run resumes and ends with the curve of an undisturbed one."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.core import checkpoints

WORKER = [sys.executable, "-W", "ignore", "-m", "tests.training.shop_worker"]
OPTIONS = ["--dropout", "0.2", "--epochs", "9"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_resumes_to_the_curve_of_an_undisturbed_one(tmp_path: Path) -> None:
    undisturbed, resumed, unfinished = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "unfinished"
    subprocess.run([*WORKER, str(undisturbed), *OPTIONS], check=True, capture_output=True, timeout=250)
    words = [*WORKER, str(resumed), *OPTIONS, "--unfinished", str(unfinished)]
    for label in ("two-tower", "ranker"):
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as running:
            wait_for_epochs(unfinished / f"{label}.0.safetensors", 2)
            running.kill()
        assert not resumed.exists(), "it ended before it was killed"
    subprocess.run(words, check=True, capture_output=True, timeout=250)
    expected, actual = json.loads(undisturbed.read_text()), json.loads(resumed.read_text())
    for label in ("two-tower", "ranker"):
        assert len(actual[label]["losses"]) == 9
        assert actual[label]["losses"] == pytest.approx(expected[label]["losses"], rel=1e-5)
        assert actual[label]["values"] == pytest.approx(expected[label]["values"], rel=1e-5)
        assert actual[label]["best_epoch"] == expected[label]["best_epoch"]


def wait_for_epochs(checkpoint: Path, epochs: int) -> None:
    end = time.monotonic() + 200
    while time.monotonic() < end:
        saved = checkpoints.load(checkpoint)
        if saved and len(saved[1]["curve"]["losses"]) >= epochs:
            return
        time.sleep(0.02)
    raise AssertionError(f"{checkpoint} did not reach epoch {epochs}")
