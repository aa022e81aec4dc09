"""The doctor reports what is missing, and each remedy fits the machine."""

import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.cli import doctor
from infra.cli.doctor import Finding, Machine, check, exit_code, render
from infra.settings import Settings

DEBIAN = Machine("linux", "debian", apt=True, root=False)


def find(findings: list[Finding], subject: str) -> Finding:
    return next(finding for finding in findings if finding.subject == subject)


def fake_java(home: Path, *, version: str, modules: str = "java.base@17\njdk.incubator.vector@17") -> str:
    path = home / "bin" / "java"
    path.parent.mkdir(parents=True)
    path.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"print({modules!r}) if '--list-modules' in sys.argv else print({version!r}, file=sys.stderr)\n"
    )
    path.chmod(0o755)
    return str(home)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that is not ours: it accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


class _Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


def settings(tmp_path: Path, **fields: object) -> Settings:
    return Settings.model_validate({"data_dir": tmp_path} | fields)


def test_accepts_a_recent_java_with_the_vector_module(tmp_path: Path) -> None:
    home = fake_java(tmp_path / "jdk", version='openjdk version "21.0.2" 2024-01-16')
    finding = find(check(settings(tmp_path), machine=DEBIAN, java_home=home), "Java")
    assert finding.state == "ok"
    assert finding.detail.startswith("21 ")
    assert finding.remedy == ""


@pytest.mark.parametrize(
    ("version", "modules", "says"),
    [
        ('java version "1.8.0_402"', "jdk.incubator.vector@8", "is Java 8"),
        ("what?", "jdk.incubator.vector@17", "unknown version"),
        ('openjdk version "17.0.1"', "java.base@17", "lacks the module jdk.incubator.vector"),
    ],
)
def test_refuses_a_java_that_spark_cannot_use(tmp_path: Path, version: str, modules: str, says: str) -> None:
    home = fake_java(tmp_path / "jdk", version=version, modules=modules)
    finding = find(check(settings(tmp_path), machine=DEBIAN, java_home=home), "Java")
    assert finding.state == "missing"
    assert says in finding.detail


@pytest.mark.parametrize(
    ("machine", "remedy"),
    [
        (DEBIAN, "sudo apt-get install -y default-jre-headless"),
        (Machine("linux", "debian", apt=True, root=True), "apt-get install -y default-jre-headless"),
        (Machine("linux", "ubuntu", apt=True), "sudo apt-get install -y openjdk-21-jre-headless"),
        (Machine("darwin"), "brew install --cask temurin@21"),
        (Machine("linux", "arch"), "Install Java 17 or later with this system's package manager."),
    ],
)
def test_names_the_one_command_of_the_platform(tmp_path: Path, machine: Machine, remedy: str) -> None:
    finding = find(check(settings(tmp_path), machine=machine, java_home=str(tmp_path / "nowhere")), "Java")
    assert finding.state == "missing"
    assert finding.remedy == remedy


def test_a_taken_port_names_a_free_one(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_answers_health", lambda host, port: False)
    port = listener.getsockname()[1]
    finding = find(check(settings(tmp_path, port=port)), f"port {port}")
    assert finding.state == "missing"
    assert finding.remedy.startswith("make demo PORT=")


def test_a_port_where_headrace_answers_is_fine(tmp_path: Path) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Healthy) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        finding = find(check(settings(tmp_path, port=server.server_port)), f"port {server.server_port}")
        server.shutdown()
        thread.join()
    assert finding.state == "ok"
    assert "running" in finding.detail


def test_a_data_folder_that_is_a_file_is_missing(tmp_path: Path) -> None:
    taken = tmp_path / "var"
    taken.touch()
    finding = find(check(settings(tmp_path, data_dir=taken / "inner")), "data folder")
    assert finding.state == "missing"
    assert "HEADRACE_DATA_DIR" in finding.remedy


def test_a_data_folder_that_does_not_exist_yet_is_fine_and_is_not_created(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert find(check(settings(tmp_path, data_dir=folder)), "data folder").state == "ok"
    assert not folder.exists()


def test_an_absent_package_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(doctor.ROLES, "stream", ("no_such_package",))
    finding = find(check(settings(tmp_path)), "packages: stream")
    assert (finding.state, finding.remedy) == ("missing", "make setup")


def test_optional_things_do_not_change_the_exit_code() -> None:
    here = Finding("Java", "ok", "17", "Spark")
    optional = Finding("Docker", "optional", "none", "containers", "brew install docker")
    missing = Finding("Python", "missing", "3.9", "everything", "Install Python 3.11 or 3.12.")
    assert exit_code([here, optional]) == 0
    assert exit_code([here, missing]) == 1
    assert render([here, optional]).endswith("Nothing needed is missing.")
    assert render([missing]).endswith("1 needed thing missing.")


def test_everything_not_ok_has_a_remedy_and_a_purpose(tmp_path: Path) -> None:
    for finding in check(settings(tmp_path), java_home=str(tmp_path)):
        assert finding.needed_for
        assert (finding.remedy == "") == (finding.state == "ok"), finding


def test_imports_no_heavy_package() -> None:
    code = (
        "import sys; from infra.cli import doctor; from infra.settings import Settings; doctor.check(Settings());"
        "sys.exit(bool({'torch', 'pyspark', 'feast', 'faiss', 'fastapi'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)
