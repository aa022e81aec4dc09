"""Chooses the first usable Python on PATH, or another one only where that is much faster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra import interpreter


def fake(folder: Path, name: str, *, version: str = "3.11", seconds: float = 1.0, runs: bool = True) -> str:
    """Writes an interpreter that reports this version and these seconds of work."""
    folder.mkdir(exist_ok=True)
    path, (major, minor) = folder / name, version.split(".")
    path.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"if not {runs}: sys.exit(127)\n"
        f"print({seconds}) if '--work' in sys.argv else print({str(path)!r}, {major}, {minor}, sep='\\n')\n"
    )
    path.chmod(0o755)
    return str(path)


def test_usable_versions_are_listed_in_the_order_of_path_and_each_once(tmp_path: Path) -> None:
    first = fake(tmp_path / "a", "python3.12", version="3.12")
    fake(tmp_path / "a", "python3.11", runs=False)
    fake(tmp_path / "b", "python3", version="3.10")
    second = fake(tmp_path / "b", "python3.11")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "python3.11").symlink_to(first)
    path = os.pathsep.join(str(tmp_path / name) for name in ("missing", "a", "b", "c"))
    assert interpreter.usable_interpreters(path) == [first, second]


@pytest.mark.parametrize(("seconds", "chosen"), [(0.95, "first"), (0.6, "second"), (1.5, "first")])
def test_a_later_one_is_chosen_only_where_it_is_much_faster(tmp_path: Path, seconds: float, chosen: str) -> None:
    first, second = fake(tmp_path / "first", "python3"), fake(tmp_path / "second", "python3", seconds=seconds)
    assert interpreter.fastest([first, second]) == {"first": first, "second": second}[chosen]


def test_the_script_prints_one_that_runs() -> None:
    script = [sys.executable, interpreter.__file__]
    chosen = subprocess.run(script, capture_output=True, text=True, check=True).stdout.strip()
    run = subprocess.run([chosen, "-c", "import sys; print(sys.version_info[:2] >= (3, 11))"], capture_output=True)
    assert run.stdout == b"True\n"


def test_without_a_usable_version_it_says_what_is_needed(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, interpreter.__file__], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "Python 3.11 or 3.12" in run.stderr
