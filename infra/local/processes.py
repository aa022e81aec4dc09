"""The background processes of one data directory: started with a log file each, remembered, stopped by id."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
from pydantic import SecretStr

from infra.settings import Settings

STOP_SECONDS = 20.0
SERVERS = ("kafka", "redis")
"""How the names of processes begin that the others talk to."""
_children: list[subprocess.Popen[bytes]] = []
"""Kept, because Python complains of a child that runs on after its object is gone."""


def command(*words: str) -> list[str]:
    """A headrace command line for this interpreter."""
    return [sys.executable, "-m", "infra.cli", *words]


def environment(settings: Settings) -> dict[str, str]:
    """The environment in which a child process has the same settings."""
    own = {
        f"HEADRACE_{name.upper()}": json.dumps(value) if isinstance(value, dict) else str(value)
        for name, value in settings.model_dump().items()
        if name in settings.model_fields_set and value is not None and not isinstance(value, SecretStr)
    }
    return {**os.environ, **own, "HEADRACE_DATA_DIR": str(settings.data_dir.absolute())}


def start(settings: Settings, name: str, *words: str, extra: Mapping[str, str] | None = None) -> int:
    """Run `headrace <words>` in the background; returns its process id."""
    return launch(settings, name, command(*words), extra=extra)


def launch(settings: Settings, name: str, argv: Sequence[str], *, extra: Mapping[str, str] | None = None) -> int:
    """Run any program in the background, under the same care as the headrace processes; returns its process id."""
    logs, pids = settings.data_dir / "logs", settings.data_dir / "run"
    logs.mkdir(parents=True, exist_ok=True)
    pids.mkdir(parents=True, exist_ok=True)
    with (logs / f"{name}.log").open("ab") as output:
        process = subprocess.Popen(
            argv,
            env={**environment(settings), **(extra or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _children.append(process)
    born = psutil.Process(process.pid).create_time()
    (pids / f"{name}.json").write_text(json.dumps({"pid": process.pid, "born": born}))
    return process.pid


def alive(settings: Settings) -> dict[str, psutil.Process]:
    """The processes that `start` left running, by name."""
    found = {}
    for path in sorted((settings.data_dir / "run").glob("*.json")):
        try:
            record = json.loads(path.read_text())
            process = psutil.Process(record["pid"])
            # The id may have been given to somebody else since.
            if abs(process.create_time() - record["born"]) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                found[path.stem] = process
        except (psutil.NoSuchProcess, ValueError, KeyError):
            continue
    return found


def stop_all(settings: Settings) -> list[str]:
    """Stop them, kindly first, and the servers that others talk to last; returns their names."""
    running = alive(settings)
    servers = {name: process for name, process in running.items() if name.startswith(SERVERS)}
    for wave in ({name: process for name, process in running.items() if name not in servers}, servers):
        family = [child for process in wave.values() for child in process.children(recursive=True)]
        for name, process in wave.items():
            # Airflow takes its own processes down with it only when it is interrupted.
            process.send_signal(signal.SIGINT if name == "airflow" else signal.SIGTERM)
        _, stubborn = psutil.wait_procs([*wave.values(), *family], timeout=STOP_SECONDS)
        for process in stubborn:
            process.kill()
    _children[:] = [child for child in _children if child.poll() is None]
    for path in (settings.data_dir / "run").glob("*.json"):
        path.unlink()
    return list(running)


def log_tail(settings: Settings, name: str, *, lines: int = 20) -> str:
    """The end of a background process's log, for an error message."""
    path = Path(settings.data_dir / "logs" / f"{name}.log")
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


def wait_until(check: Callable[[], object], *, seconds: float, pause: float = 0.2) -> bool:
    """Call `check` until it returns something true; False when it never did in that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(pause)
    return False
