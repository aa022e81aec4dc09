"""The command line: its version, what it says with nothing published, and packages that are not installed."""

import builtins
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import apps.commands
from apps.experiments.definitions import ExperimentStore
from apps.experiments.schemas import ExperimentDefinition, Report
from apps.main import create_app
from infra.cli.commands import cli
from infra.log.files import FileLog
from infra.progress import progress_bar
from infra.settings import Settings
from infra.version import version

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_DATA_DIR", str(tmp_path))
    return tmp_path


def test_the_version_is_that_of_the_project(data: Path) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert CliRunner().invoke(cli, ["--version"]).output == f"headrace {declared}\n"
    assert create_app(Settings(data_dir=data)).version == version() == declared


def test_without_a_release_it_says_how_to_make_one() -> None:
    result = CliRunner().invoke(cli, ["releases"])
    assert result.exit_code == 0
    assert "`headrace train` publishes the first" in result.output


def test_a_report_is_the_json_that_the_api_answers(data: Path) -> None:
    variations = [{"key": "control", "weight": 0.5}, {"key": "model", "weight": 0.5}]
    definition = {"key": "ranker", "surface": "home", "variations": variations}
    ExperimentStore(FileLog(data / "log"), lambda: 1.8e9).put(ExperimentDefinition.model_validate(definition))
    result = CliRunner().invoke(cli, ["report", "ranker", "--json"])
    assert result.exit_code == 0, result.output
    assert Report.model_validate_json(result.output).experiment.key == "ranker"
    assert CliRunner().invoke(cli, ["report", "ranker"]).output.startswith("experiment ranker: ")


@pytest.mark.parametrize(("name", "package", "extra"), [("features", "pyspark", "stream"), ("train", "torch", "train")])
def test_a_command_names_the_extra_of_a_package_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    imported = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] in ("streaming", "training"):
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    result = CliRunner().invoke(cli, [name])
    assert result.exit_code == 1
    assert result.output == f"Error: {name} needs {package}, which is not installed: pip install 'headrace[{extra}]'\n"


def test_a_module_of_ours_that_is_not_there_is_a_bug_and_no_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apps.commands.traffic", None)
    monkeypatch.delattr(apps.commands, "traffic", raising=False)  # another test may have imported it
    with pytest.raises(ModuleNotFoundError, match=re.escape("apps.commands.traffic")):
        CliRunner().invoke(cli, ["traffic"], catch_exceptions=False)


def test_a_progress_bar_is_quiet_where_stderr_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(range(3), desc="steps")) == [0, 1, 2]
    with progress_bar(total=2, desc="bytes") as bar:
        bar.update(2)
    assert capfd.readouterr().err == ""


def test_a_shell_can_complete_the_verbs() -> None:
    environment = {"_HEADRACE_COMPLETE": "bash_complete", "COMP_WORDS": "headrace re", "COMP_CWORD": "1"}
    command = [sys.executable, "-c", "from infra.cli.commands import main; main()"]
    done = subprocess.run(
        command, cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert {"plain,releases", "plain,replay", "plain,report"} <= set(done.stdout.split())
