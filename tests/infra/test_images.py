"""The images hold what the code needs, in the versions that were tested, and run without root."""

import re
import shutil
import subprocess
from fnmatch import fnmatch

import pytest

from infra.cli.doctor import JAVA_MINIMUM
from tests.infra.code_facts import COMMANDS, INFRA, PORTS, PROJECT, ROOT, pin, routes, unknown_settings

DOCKERFILE = (INFRA / "images" / "Dockerfile").read_text()
TARGETS = {"serve": "api", "stream": "stream", "train": None, "dags": "airflow"}


def instructions(text: str) -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.M))
    return [(words[0], words[1]) for line in joined.splitlines() if len(words := line.strip().split(None, 1)) == 2]


def stages(text: str) -> dict[str, list[tuple[str, str]]]:
    """Returns instructions by stage; the first of each is FROM with the image or stage that it starts from."""
    by_name: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for name, rest in instructions(text):
        if name == "FROM":
            image, _, stage = rest.partition(" AS ")
            current = by_name[stage] = [("FROM", image)]
        else:
            current.append((name, rest))
    return by_name


def arguments(text: str) -> dict[str, str]:
    return {
        name: value
        for name, _, value in (rest.partition("=") for instruction, rest in instructions(text) if instruction == "ARG")
        if value
    }


def ignored(path: str) -> bool:
    """Returns whether .dockerignore keeps a path of the project from the builder."""
    state = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.strip().lstrip("!")
        if (
            rule
            and not rule.startswith("#")
            and (rule == "*" or path == rule or path.startswith(f"{rule}/") or fnmatch(path, rule))
        ):
            state = not line.startswith("!")
    return state


def problems(text: str) -> list[str]:
    faults: list[str] = []
    stage_lines = stages(text)
    for name, lines in stage_lines.items():
        for instruction, rest in lines:
            if instruction == "COPY":
                faults += copy_problems(name, rest, stage_lines)
            if instruction == "RUN" and re.search(r"pip (sync|install)", rest):
                faults += [
                    f"{name}: {command}"
                    for command in re.findall(r"pip (?:sync|install)[^&;]*", rest)
                    if "--require-hashes" not in command
                ]
            if instruction == "ADD":
                faults.append(f"{name}: ADD may fetch what nobody checked")
        unknown = unknown_settings(set(re.findall(r"HEADRACE_\w+", str(lines))))
        faults += [f"{name}: no setting {setting}" for setting in unknown]
        if re.search(r"(PASSWORD|SECRET|TOKEN|PSEUDONYM_KEY)", str(lines)):
            faults.append(f"{name}: a secret in an image")
    for target, part in TARGETS.items():
        faults += target_problems(target, part, stage_lines.get(target, []))
    return faults + version_problems(text)


def version_problems(text: str) -> list[str]:
    faults, given = [], arguments(text)
    low, high = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    if not int(low) <= int(given["PYTHON_VERSION"].split(".")[1]) < int(high):
        faults.append(f"Python {given['PYTHON_VERSION']} is not {PROJECT['requires-python']}")
    if given["SPARK_VERSION"] != pin("pyspark", "stream"):
        faults.append(f"Spark {given['SPARK_VERSION']} is not pyspark's {pin('pyspark', 'stream')}")
    java = re.search(r"openjdk-(\d+)-jre", text)
    if not java or int(java[1]) < JAVA_MINIMUM:
        faults.append(f"Java is older than {JAVA_MINIMUM}")
    return faults


def copy_problems(stage: str, rest: str, stage_lines: dict[str, list[tuple[str, str]]]) -> list[str]:
    words = rest.split()
    if words[0].startswith("--from="):
        source = words[0].removeprefix("--from=")
        return [] if source in stage_lines else [f"{stage}: no stage {source}"]
    return [f"{stage}: nothing to copy at {path}" for path in words[:-1] if not (ROOT / path).exists() or ignored(path)]


def target_problems(target: str, part: str | None, lines: list[tuple[str, str]]) -> list[str]:
    faults = []
    said = dict(lines)
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", said.get("USER", "")):
        faults.append(f"{target}: runs as root, or by a name that a cluster cannot check")
    health = said.get("HEALTHCHECK", "")
    url = re.search(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", health)
    if part is None:
        faults += [] if health == "NONE" else [f"{target}: it has no server to ask"]
    elif not url or int(url[1]) != PORTS[part] or (part == "api" and url[2] not in routes()):
        faults.append(f"{target}: the health check does not ask where {part} answers")
    elif str(PORTS[part]) not in said.get("EXPOSE", "").split():
        faults.append(f"{target}: {PORTS[part]} is not exposed")
    command = re.findall(r'"([^"]+)"', said.get("CMD", ""))
    if command[:1] == ["headrace"] and command[1] not in COMMANDS:
        faults.append(f"{target}: there is no command {command[1]}")
    if not command:
        faults.append(f"{target}: no command")
    return faults


def test_the_images_agree_with_the_code() -> None:
    assert problems(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("ARG PYTHON_VERSION=3.11", "ARG PYTHON_VERSION=3.13", "Python 3.13"),
        ("ARG SPARK_VERSION=4.3.0", "ARG SPARK_VERSION=4.2.0", "Spark 4.2.0"),
        ("openjdk-17-jre", "openjdk-11-jre", "Java"),
        ("COPY streaming streaming", "COPY spark streaming", "nothing to copy"),
        ("COPY dags /opt/dags", "COPY tests /opt/dags", "nothing to copy"),
        ("COPY --from=code", "COPY --from=source", "no stage"),
        ("--require-hashes infra/requirements/serve.txt", "infra/requirements/serve.txt", "pip sync"),
        ("HEADRACE_METRICS_HOST", "HEADRACE_METRIC_HOST", "no setting"),
        ("127.0.0.1:8000/healthz", "127.0.0.1:8001/healthz", "health check"),
        ("127.0.0.1:8000/healthz", "127.0.0.1:8000/health", "health check"),
        ('CMD ["headrace", "train"]', 'CMD ["headrace", "learn"]', "there is no command"),
        ("USER 10001:10001\nENV HEADRACE_HOST", "ENV HEADRACE_HOST", "root"),
        ("ENV HEADRACE_HOST=0.0.0.0", "ENV POSTGRES_PASSWORD=x", "secret"),
    ],
)
def test_a_change_of_one_side_is_reported(right: str, wrong: str, message: str) -> None:
    assert right in DOCKERFILE
    assert any(message in fault for fault in problems(DOCKERFILE.replace(right, wrong)))


def test_nothing_but_code_and_requirements_reaches_the_builder() -> None:
    for path in ("var/log", ".venv/bin/python", ".git/config", "infra/.env", "tests/conftest.py", "docs/log.md"):
        assert ignored(path), path
    assert not ignored("apps/main.py")


@pytest.mark.skipif(shutil.which("sed") is None, reason="no sed")
def test_a_gpu_image_gets_the_pinned_cuda_build() -> None:
    commands = re.search(r"sed -n (\"[^\"]+\") \S+ \| sed (\"[^\"]+\")", DOCKERFILE)
    assert commands
    first, second = (part.strip('"').replace("\\\\\\\\", "\\\\") for part in commands.groups())
    block = subprocess.run(
        ["sed", "-n", first, str(INFRA / "requirements" / "train.txt")], capture_output=True, text=True, check=True
    ).stdout
    pinned = subprocess.run(["sed", second], input=block, capture_output=True, text=True, check=True).stdout
    assert pinned.startswith(f"fbgemm-gpu=={pin('fbgemm-gpu-cpu', 'train')} \\\n")
    assert "never" not in pinned
    assert pinned.count("==") == 1
    assert pinned.count("--hash=sha256:") >= 1


def test_airflow_has_the_drivers_of_its_database() -> None:
    assert pin("psycopg2-binary", "dags")
    assert pin("asyncpg", "dags")
