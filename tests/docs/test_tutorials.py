"""Each tutorial is walked as a reader would: its commands, in order, in one shell, with what it says they print.

A fenced ```sh block is run, and has to end with status 0. A line `<!-- expect: text -->` after it names what its output
must hold.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from infra.local.ports import free_port
from infra.local.processes import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java; `headrace doctor` says how to get it"),
]

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
MARK = "--- status"
WALK_SECONDS, STOP_SECONDS = 800, 30


@dataclass
class Step:
    """One block of commands, and what its output must hold."""

    commands: str
    expected: list[str] = field(default_factory=list)


def steps(page: Path) -> list[Step]:
    """The command blocks of a page, in their order."""
    collected: list[Step] = []
    pattern = r"^```sh\n(.*?)^```$|^<!-- expect: (.+?) -->$"
    for commands, expected in re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if commands:
            collected.append(Step(commands))
        else:
            collected[-1].expected.append(expected)
    return collected


@contextlib.contextmanager
def shell(script: Path, folder: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A bash that runs the script with `headrace` of this tree; all that it started is killed in the end."""
    tools = folder / "bin"
    tools.mkdir()
    command = tools / "headrace"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m infra.cli "$@"\n')
    command.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")} | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "HEADRACE_PORT": str(free_port()),
        "HEADRACE_DATA_DIR": str(folder / "data"),
    }
    with output.open("wb") as file:
        bash = subprocess.Popen(
            ["bash", str(script)], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            yield bash
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(bash.pid, signal.SIGKILL)
            bash.wait()


def group_is_gone(leader: int) -> bool:
    """Whether no process of a group is left, after its leader was waited for."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return True
    return False


def walk(page: Path, folder: Path) -> tuple[list[tuple[str, str]], bool]:
    """((output, status) of each block, whether the tutorial stopped all that it started)."""
    script, output = folder / "walk.sh", folder / "output.txt"
    script.write_text("".join(f"{step.commands}status=$?; echo; echo '{MARK}' $status\n" for step in steps(page)))
    with shell(script, folder, output) as bash:
        bash.wait(WALK_SECONDS)
        stopped = wait_until(lambda: group_is_gone(bash.pid), seconds=STOP_SECONDS)
    text = output.read_text(encoding="utf-8", errors="replace")
    return re.findall(rf"(.*?)^{MARK} (\d+)\n", text, re.MULTILINE | re.DOTALL), stopped


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_tutorial_can_be_walked(page: Path, tmp_path: Path) -> None:
    results, stopped = walk(page, tmp_path)
    for number, (step, (output, status)) in enumerate(zip(steps(page), results, strict=True), start=1):
        block = f"block {number} of {page.name}:\n{step.commands}\n{output[-3000:]}"
        assert status == "0", f"status {status} of {block}"
        for text in step.expected:
            assert text in output, f"{text!r} is missing in the output of {block}"
    assert stopped, f"{page.name} leaves processes running"
