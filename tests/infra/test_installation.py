"""`pip install` of the source tree into an empty environment: the command runs, and the package is whole."""

import os
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

from infra.version import version

ROOT = Path(__file__).parents[2]
OFFLINE = ("Temporary failure in name resolution", "Could not find a version", "Connection", "Max retries")
DATA_FILES = {
    "apps/console/templates/base.html", "apps/console/static/console.css", "apps/console/static/console.js",
    "infra/maven/spark.xml", "infra/maven/spark.sha256", "infra/maven/broker.xml", "infra/maven/broker.sha256",
    "infra/local/log4j2.properties", "streaming/log4j2.properties",
}  # fmt: skip


def pip(folder: Path, *words: str) -> None:
    command = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if done.returncode and any(reason in done.stderr for reason in OFFLINE):
        pytest.skip("no package registry can be reached")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_empty_environment_gets_a_command_that_runs(tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=True)
    pip(folder, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("headrace-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= DATA_FILES, DATA_FILES - names
    assert not [
        name for name in names if name.startswith(("tests/", "dags/", "docs/", "var/")) or "__pycache__" in name
    ]
    pip(folder, "install", "--quiet", str(wheel))

    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def headrace(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "bin" / "headrace"), *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)

    assert headrace("--version").stdout == f"headrace {version()}\n"
    assert "doctor" in headrace("--help").stdout
    doctor = headrace("doctor")
    assert "pip install 'headrace[serve]'" in doctor.stdout
    assert "Traceback" not in doctor.stderr
    for words in (["serve"], ["features"], ["train"], ["import", "x"]):
        refused = headrace(*words)
        assert (refused.returncode, "Traceback" in refused.stderr) == (1, False), refused.stderr
        assert "which is not installed: pip install 'headrace[" in refused.stderr
