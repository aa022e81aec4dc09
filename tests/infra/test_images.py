"""The images hold what the code needs, in the versions that the tests saw, and run as nobody in particular."""

import re
import shutil
import subprocess
from fnmatch import fnmatch

import pytest

from infra.cli.doctor import JAVA_MINIMUM
from tests.infra.code_facts import INFRA, PORTS, PROJECT, ROOT, VERBS, pin, routes, unknown_settings

DOCKERFILE = (INFRA / "images" / "Dockerfile").read_text()
TARGETS = {"serve": "api", "stream": "stream", "train": None, "dags": "airflow"}


def instructions(text: str) -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.M))
    return [(words[0], words[1]) for line in joined.splitlines() if len(words := line.strip().split(None, 1)) == 2]


def stages(text: str) -> dict[str, list[tuple[str, str]]]:
    """Name to instructions; the first of each is FROM with the image or stage it starts from."""
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for name, rest in instructions(text):
        if name == "FROM":
            image, _, stage = rest.partition(" AS ")
            current = found[stage] = [("FROM", image)]
        else:
            current.append((name, rest))
    return found


def arguments(text: str) -> dict[str, str]:
    return {
        name: value
        for name, _, value in (rest.partition("=") for kind, rest in instructions(text) if kind == "ARG")
        if value
    }


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the project from the builder."""
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
    told: list[str] = []
    found = stages(text)
    for name, lines in found.items():
        for kind, rest in lines:
            if kind == "COPY":
                told += copy_problems(name, rest, found)
            if kind == "RUN" and re.search(r"pip (sync|install)", rest):
                told += [
                    f"{name}: {one}"
                    for one in re.findall(r"pip (?:sync|install)[^&;]*", rest)
                    if "--require-hashes" not in one
                ]
            if kind == "ADD":
                told.append(f"{name}: ADD may fetch what nobody checked")
        told += [f"{name}: no setting {one}" for one in unknown_settings(set(re.findall(r"HEADRACE_\w+", str(lines))))]
        if re.search(r"(PASSWORD|SECRET|TOKEN|PSEUDONYM_KEY)", str(lines)):
            told.append(f"{name}: a secret in an image")
    for target, part in TARGETS.items():
        told += target_problems(target, part, found.get(target, []))
    return told + version_problems(text)


def version_problems(text: str) -> list[str]:
    told, given = [], arguments(text)
    low, high = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    if not int(low) <= int(given["PYTHON_VERSION"].split(".")[1]) < int(high):
        told.append(f"Python {given['PYTHON_VERSION']} is not {PROJECT['requires-python']}")
    if given["SPARK_VERSION"] != pin("pyspark", "stream"):
        told.append(f"Spark {given['SPARK_VERSION']} is not pyspark's {pin('pyspark', 'stream')}")
    java = re.search(r"openjdk-(\d+)-jre", text)
    if not java or int(java[1]) < JAVA_MINIMUM:
        told.append(f"Java is older than {JAVA_MINIMUM}")
    return told


def copy_problems(stage: str, rest: str, found: dict[str, list[tuple[str, str]]]) -> list[str]:
    words = rest.split()
    if words[0].startswith("--from="):
        source = words[0].removeprefix("--from=")
        return [] if source in found else [f"{stage}: no stage {source}"]
    return [f"{stage}: nothing to copy at {one}" for one in words[:-1] if not (ROOT / one).exists() or ignored(one)]


def target_problems(target: str, part: str | None, lines: list[tuple[str, str]]) -> list[str]:
    told = []
    said = dict(lines)
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", said.get("USER", "")):
        told.append(f"{target}: runs as root, or by a name that a cluster cannot check")
    health = said.get("HEALTHCHECK", "")
    url = re.search(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", health)
    if part is None:
        told += [] if health == "NONE" else [f"{target}: it has no server to ask"]
    elif not url or int(url[1]) != PORTS[part] or (part == "api" and url[2] not in routes()):
        told.append(f"{target}: the health check asks at another place than {part} answers")
    elif str(PORTS[part]) not in said.get("EXPOSE", "").split():
        told.append(f"{target}: {PORTS[part]} is not exposed")
    command = re.findall(r'"([^"]+)"', said.get("CMD", ""))
    if command[:1] == ["headrace"] and command[1] not in VERBS:
        told.append(f"{target}: there is no verb {command[1]}")
    if not command:
        told.append(f"{target}: no command")
    return told


def test_the_images_agree_with_the_code() -> None:
    assert problems(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
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
        ('CMD ["headrace", "train"]', 'CMD ["headrace", "learn"]', "no verb"),
        ("USER 10001:10001\nENV HEADRACE_HOST", "ENV HEADRACE_HOST", "root"),
        ("ENV HEADRACE_HOST=0.0.0.0", "ENV POSTGRES_PASSWORD=x", "secret"),
    ],
)
def test_a_change_of_one_side_is_told(right: str, wrong: str, told: str) -> None:
    assert right in DOCKERFILE
    assert any(told in one for one in problems(DOCKERFILE.replace(right, wrong)))


def test_nothing_but_code_and_requirements_reaches_the_builder() -> None:
    for path in ("var/log", ".venv/bin/python", ".git/config", "infra/.env", "tests/conftest.py", "docs/log.md"):
        assert ignored(path), path
    assert not ignored("apps/main.py")


@pytest.mark.skipif(shutil.which("sed") is None, reason="no sed")
def test_a_gpu_image_gets_the_pinned_cuda_build() -> None:
    commands = re.search(r"sed -n (\"[^\"]+\") \S+ \| sed (\"[^\"]+\")", DOCKERFILE)
    assert commands
    first, second = (one.strip('"').replace("\\\\\\\\", "\\\\") for one in commands.groups())
    block = subprocess.run(
        ["sed", "-n", first, str(INFRA / "requirements" / "train.txt")], capture_output=True, text=True, check=True
    ).stdout
    made = subprocess.run(["sed", second], input=block, capture_output=True, text=True, check=True).stdout
    assert made.startswith(f"fbgemm-gpu=={pin('fbgemm-gpu-cpu', 'train')} \\\n")
    assert "never" not in made
    assert made.count("==") == 1
    assert made.count("--hash=sha256:") >= 1


def test_airflow_has_the_drivers_of_its_database() -> None:
    assert pin("psycopg2-binary", "dags")
    assert pin("asyncpg", "dags")
