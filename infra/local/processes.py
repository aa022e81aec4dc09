"""Starts, remembers and stops the background processes of one data directory, each with a log file."""

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
"""Prefixes of the names of processes that the others depend on; they are stopped last."""
_children: list[subprocess.Popen[bytes]] = []
"""Referenced here, because Python warns when the object of a running child is collected."""


def command(*words: str) -> list[str]:
    """Returns a headrace command line for this interpreter."""
    return [sys.executable, "-m", "infra.cli", *words]


def environment(settings: Settings) -> dict[str, str]:
    """Returns the environment in which a child process has the same settings."""
    own = {
        f"HEADRACE_{name.upper()}": json.dumps(value) if isinstance(value, dict) else str(value)
        for name, value in settings.model_dump().items()
        if name in settings.model_fields_set and value is not None and not isinstance(value, SecretStr)
    }
    return {**os.environ, **own, "HEADRACE_DATA_DIR": str(settings.data_dir.absolute())}


def start(settings: Settings, name: str, *words: str, extra: Mapping[str, str] | None = None) -> int:
    """Runs `headrace <words>` in the background and returns its process id."""
    return launch(settings, name, command(*words), extra=extra)


def launch(settings: Settings, name: str, argv: Sequence[str], *, extra: Mapping[str, str] | None = None) -> int:
    """Runs any program in the background, remembered as headrace processes are; returns its process id."""
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
    created = psutil.Process(process.pid).create_time()
    (pids / f"{name}.json").write_text(json.dumps({"pid": process.pid, "born": created}))
    return process.pid


def alive(settings: Settings) -> dict[str, psutil.Process]:
    """Returns the running processes that `start` or `launch` started, by name."""
    running = {}
    for path in sorted((settings.data_dir / "run").glob("*.json")):
        try:
            record = json.loads(path.read_text())
            process = psutil.Process(record["pid"])
            # The id may belong to another process by now.
            if abs(process.create_time() - record["born"]) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                running[path.stem] = process
        except (psutil.NoSuchProcess, ValueError, KeyError):
            continue
    return running


def stop_all(settings: Settings) -> list[str]:
    """Stops them, servers last; kills what does not stop within STOP_SECONDS. Returns their names."""
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
    """Returns the end of a background process's log, for an error message."""
    path = Path(settings.data_dir / "logs" / f"{name}.log")
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


def wait_until(check: Callable[[], object], *, seconds: float, pause: float = 0.2) -> bool:
    """Calls `check` until it returns something true; False when it did not within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(pause)
    return False
