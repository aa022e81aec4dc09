"""Each tutorial is walked as a reader would: its commands, in order, in one shell, with what it says they print.

A fenced ```sh block is run. `<!-- expect: text -->` lines after it name what its output must hold; every block must
end with status 0.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.local.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java; `headrace doctor` says how to get it"),
]

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
MARK = "--- end of step"
SECONDS = 800


@dataclass
class Step:
    """One block of commands, and what its output must hold."""

    commands: str
    expected: list[str]


def steps(page: Path) -> list[Step]:
    """The command blocks of a page in their order."""
    found: list[Step] = []
    for commands, expected in re.findall(
        r"^```sh\n(.*?)^```$|^<!-- expect: (.+?) -->$", page.read_text(), re.MULTILINE | re.DOTALL
    ):
        if commands:
            found.append(Step(commands, []))
        else:
            found[-1].expected.append(expected)
    return found


def walk(page: Path, folder: Path) -> list[str]:
    """Runs the blocks of a page in one bash; returns the output of each. Whatever they leave running is stopped."""
    tools = folder / "bin"
    tools.mkdir()
    wrapper = tools / "headrace"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m infra.cli "$@"\n')
    wrapper.chmod(0o755)
    script = folder / "walk.sh"
    script.write_text("".join(f"{step.commands}echo\necho '{MARK}' $?\n" for step in steps(page)))
    script.write_text(
        "".join(f"{step.commands}status=$?; echo; echo '{MARK}' $status\n" for step in steps(page)), encoding="utf-8"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")},
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "HEADRACE_PORT": str(free_port()),
        "HEADRACE_DATA_DIR": str(folder / "data"),
    }
    output = folder / "output.txt"
    with output.open("w") as file:
        shell = subprocess.Popen(
            ["bash", str(script)], cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            shell.wait(SECONDS)
        finally:
            stop_session(shell.pid)
    return re.split(rf"^{MARK} ", output.read_text(), flags=re.MULTILINE)


def stop_session(leader: int) -> None:
    """Ends what the shell started: all of it is in the shell's process group."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def left_running(session: int) -> list[str]:
    """Command lines of the processes of a session."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (ProcessLookupError, psutil.Error):
            continue
    return found


@pytest.mark.parametrize("name", ["shop", "risk", "experiments"])
def test_the_tutorial_can_be_walked(name: str, tmp_path: Path) -> None:
    page = TUTORIALS / f"{name}.md"
    parts = walk(page, tmp_path)
    outputs = [parts[0], *(part.partition("\n")[2] for part in parts[1:-1])]
    statuses = [part.partition("\n")[0] for part in parts[1:]]
    for number, (step, output, status) in enumerate(zip(steps(page), outputs, statuses, strict=True), start=1):
        where = f"{page.name}, block {number}:\n{step.commands}\n{output[-3000:]}"
        assert status == "0", f"status {status} of {where}"
        for text in step.expected:
            assert text in output, f"{text!r} is missing in the output of {where}"
