"""`headrace doctor`: reports what this machine lacks to run Headrace, and the command that gets it.

It changes nothing, and finds packages without importing them. JAVA_HOME and PATH describe the machine, so they are read
here; configuration comes from infra.settings. `python -m infra.cli.doctor` prints only what is missing.
"""

import http.client
import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infra.settings import Settings
from infra.version import PYPROJECT

GIBIBYTE = 2**30
JAVA_MINIMUM = 17
VECTOR_MODULE = "jdk.incubator.vector"
ROLES = {
    "serve": ("click", "confluent_kafka", "fastapi", "feast", "duckdb", "faiss", "onnxruntime", "tea_tasting"),
    "stream": ("pyspark",),
    "train": ("torch", "torchrec", "fbgemm_gpu", "onnx", "optuna", "sklearn", "tensorboardX"),
}
"""Packages whose presence shows that a role's requirements file is installed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    subject: str
    state: Literal["ok", "missing", "optional"]
    """`missing`: Headrace needs it and it is absent; `optional`: it is absent, and Headrace runs without it."""
    detail: str
    needed_for: str
    remedy: str = ""
    """The command that gets it, or a sentence where no single command does; empty when the state is ok."""


@dataclass(frozen=True, slots=True)
class Machine:
    """How software gets onto this machine."""

    system: str
    """sys.platform."""
    distribution: str = ""
    """ID of /etc/os-release, such as debian."""
    apt: bool = False
    root: bool = False

    def install(self, software: str, *, apt: str, brew: str) -> str:
        """Returns the command that installs `software`; apt and brew are its package names there."""
        if self.system == "darwin":
            return f"brew install {brew}"
        if self.apt:
            return f"{'' if self.root else 'sudo '}apt-get install -y {apt}"
        return f"Install {software} with this system's package manager."


def this_machine() -> Machine:
    try:
        distribution = platform.freedesktop_os_release()["ID"]
    except (OSError, AttributeError):
        distribution = ""
    return Machine(sys.platform, distribution, apt=shutil.which("apt-get") is not None, root=os.geteuid() == 0)


def check(settings: Settings, *, machine: Machine | None = None, java_home: str | None = None) -> list[Finding]:
    """Runs all checks, in the order in which a new user needs the results; `java_home` replaces JAVA_HOME."""
    machine = machine or this_machine()
    return [
        _python(),
        _java(machine, java_home if java_home is not None else os.environ.get("JAVA_HOME", "")),
        *_packages(),
        _writable(settings.data_dir),
        _disk(settings.data_dir),
        _memory(),
        _cores(),
        _port(settings.host, settings.port),
        *_extras(machine),
    ]


def exit_code(findings: Sequence[Finding]) -> int:
    """Returns 1 when anything needed is missing, otherwise 0."""
    return int(any(finding.state == "missing" for finding in findings))


def render(findings: Sequence[Finding]) -> str:
    """Returns one line for each finding, with the remedy below it, and a last line that sums up."""
    lines: list[str] = []
    width = max((len(finding.subject) for finding in findings), default=0)
    for finding in findings:
        lines.append(f"{finding.state:<8}  {finding.subject:<{width}}  {finding.detail}")
        if finding.state != "ok":
            lines.append(f"{'':<8}  {'':<{width}}  for {finding.needed_for}: {finding.remedy}")
    missing = sum(finding.state == "missing" for finding in findings)
    lines.append(f"{missing} needed thing{'s' * (missing != 1)} missing." if missing else "Nothing needed is missing.")
    return "\n".join(lines)


def _python() -> Finding:
    version = platform.python_version()
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Finding(
        "Python", "ok" if fits else "missing", version, "everything", "" if fits else "Install Python 3.11 or 3.12."
    )


def java_major(version_text: str) -> int | None:
    """Returns the major version that `java -version` prints; None when it prints no version.

    >>> java_major('openjdk version "17.0.15" 2025-04-15'), java_major('java version "1.8.0_402"'), java_major("?")
    (17, 8, None)
    """
    match = re.search(r'version "(?:1\.)?(\d+)', version_text)
    return int(match[1]) if match else None


def _java(machine: Machine, java_home: str) -> Finding:
    # The default of some Ubuntu releases is older than 17.
    package = "openjdk-21-jre-headless" if machine.distribution == "ubuntu" else "default-jre-headless"
    remedy = machine.install(f"Java {JAVA_MINIMUM} or later", apt=package, brew="--cask temurin@21")
    purpose = "Spark (headrace features, stream, exposures, demo) and a Kafka broker on this machine"
    path = str(Path(java_home) / "bin" / "java") if java_home else shutil.which("java")
    printed = _output(path, "-version") if path else None
    if path is None or printed is None:
        detail = f"no working java in JAVA_HOME ({java_home})" if java_home else "no working java on PATH"
        return Finding("Java", "missing", detail, purpose, remedy)
    major = java_major(printed)
    if major is None or major < JAVA_MINIMUM:
        detail = f"{path} is Java {major or 'of an unknown version'}; {JAVA_MINIMUM} or later is needed"
        return Finding("Java", "missing", detail, purpose, remedy)
    if VECTOR_MODULE not in (_output(path, "--list-modules") or ""):
        return Finding("Java", "missing", f"{path} lacks the module {VECTOR_MODULE}", purpose, remedy)
    return Finding("Java", "ok", f"{major} ({path})", purpose)


def _output(*argv: str) -> str | None:
    """Returns what a short command prints to either stream; None when it cannot run or fails."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _packages() -> Iterator[Finding]:
    for role, modules in ROLES.items():
        remedy = "make setup" if PYPROJECT.exists() else f"pip install 'headrace[{role}]'"
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        state: Literal["ok", "missing"] = "missing" if absent else "ok"
        detail = f"not installed: {', '.join(absent)}" if absent else "installed"
        yield Finding(f"packages: {role}", state, detail, f"the role {role}", remedy if absent else "")


def _existing(path: Path) -> Path:
    """Returns the path, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _writable(data_dir: Path) -> Finding:
    purpose = "the event log, features and releases"
    nearest = _existing(data_dir)
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return Finding("data folder", "ok", str(data_dir.absolute()), purpose)
    remedy = "HEADRACE_DATA_DIR=<a folder of yours> in front of the command"
    return Finding("data folder", "missing", f"{nearest} cannot be written to", purpose, remedy)


def _at_least(
    subject: str,
    *,
    have: float,
    enough: float,
    unit: str,
    purpose: str,
    remedy: str,
    state: Literal["missing", "optional"],
) -> Finding:
    detail = f"{have:.3g} {unit}"
    if have >= enough:
        return Finding(subject, "ok", detail, purpose)
    return Finding(subject, state, f"{detail}; at least {enough:g} {unit} needed", purpose, remedy)


def _disk(data_dir: Path) -> Finding:
    return _at_least(
        "free disk",
        have=shutil.disk_usage(_existing(data_dir)).free / GIBIBYTE,
        enough=3,
        unit="GiB",
        purpose="the demo's year of events, features and releases",
        remedy="Free some space, or set HEADRACE_DATA_DIR to a folder on a larger disk.",
        state="missing",
    )


def _memory() -> Finding:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        size = min(size, int(text))
    return _at_least(
        "memory",
        have=size / GIBIBYTE,
        enough=8,
        unit="GiB",
        purpose="the whole demo (Spark, training and the API at once)",
        remedy="make demo SMALL=1, with HEADRACE_SPARK_DRIVER_MEMORY=1g",
        state="optional",
    )


def _cores() -> Finding:
    return _at_least(
        "cores",
        have=float(os.cpu_count() or 1),
        enough=2,
        unit="cores",
        purpose="answers that stay fast while Spark works",
        remedy="Headrace works on one core too, slowly.",
        state="optional",
    )


def _port(host: str, port: int) -> Finding:
    subject, purpose = f"port {port}", "the API and the console"
    if _is_free(host, port):
        return Finding(subject, "ok", "free", purpose)
    if _answers_health(host, port):
        return Finding(subject, "ok", "a Headrace API is running there", purpose)
    other = next((number for number in range(port + 1, min(port + 100, 65_536)) if _is_free(host, number)), None)
    return Finding(
        subject,
        "missing",
        f"cannot be opened on {host}",
        purpose,
        f"make demo PORT={other}" if other else "Free a port.",
    )


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _answers_health(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1" if host in ("0.0.0.0", "::") else host, port, timeout=2)  # noqa: S104
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        media_type = response.getheader("content-type", "") or ""
        return response.status == 200 and media_type.startswith("application/json")
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _extras(machine: Machine) -> Iterator[Finding]:
    for subject, names, purpose, apt, brew in (
        ("Chromium", ("chromium", "chromium-browser", "google-chrome"), "the browser tests", "chromium", "chromium"),
        ("Docker", ("docker",), "servers in containers", "docker.io", "docker"),
        ("Maven", ("mvn",), "fetching the jars of Kafka and of Spark's Kafka source, once", "maven", "maven"),
        ("Redis", ("redis-server",), "tests against a real Redis", "redis-server", "redis"),
    ):
        path = next(filter(None, map(shutil.which, names)), None)
        remedy = machine.install(subject, apt=apt, brew=brew)
        yield Finding(subject, "ok", path, purpose) if path else Finding(subject, "optional", "none", purpose, remedy)
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if gpus:
        yield Finding("CUDA GPU", "ok", ", ".join(gpus.split("\n")).strip(", "), "faster training")
    else:
        remedy = "Not needed; docs/decisions/0003-torchrec-on-cpu.md says how to use one."
        yield Finding("CUDA GPU", "optional", "none", "faster training", remedy)


if __name__ == "__main__":
    missing = [finding for finding in check(Settings()) if finding.state == "missing"]
    if missing:
        print(render(missing))
    sys.exit(exit_code(missing))
