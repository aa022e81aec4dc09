"""Facts of the code that deployment files must agree with: settings, commands, ports, routes, pins, topics."""

import contextlib
import functools
import json
import re
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch
from xml.etree import ElementTree

from apps.main import create_app
from infra import topics
from infra.cli.commands import cli
from infra.local import kafka_broker, redis_server, stack
from infra.log.kafka import KafkaLog
from infra.settings import READ_ELSEWHERE, Settings

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
SCHEMAS = Path(__file__).parent / "schemas"
POM = "{http://maven.apache.org/POM/4.0.0}"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = set(cli.commands)


def default(setting: str) -> Any:
    return Settings.model_fields[setting].default


PORTS = {
    "api": default("port"),
    "scorer": stack.SCORER_METRICS_PORT,
    "stream": stack.STREAM_METRICS_PORT,
    "kafka": default("kafka_port"),
    "redis": default("redis_port"),
    "airflow": default("airflow_port"),
}


def pin(package: str, role: str) -> str:
    match = re.search(rf"^{re.escape(package)}==([^\s;]+)", (INFRA / "requirements" / f"{role}.txt").read_text(), re.M)
    assert match, f"{package} is not in {role}.txt"
    return match[1]


@functools.cache
def broker_version() -> str:
    """Returns the version of the Kafka that the tests run against."""
    for dependency in ElementTree.parse(INFRA / "maven" / "broker.xml").iter(f"{POM}dependency"):  # noqa: S314
        if dependency.findtext(f"{POM}artifactId", "").startswith("kafka_"):
            return dependency.findtext(f"{POM}version", "")
    raise AssertionError("broker.xml names no Kafka")


@functools.cache
def routes() -> set[str]:
    with tempfile.TemporaryDirectory() as folder:
        return set(create_app(Settings(data_dir=Path(folder))).openapi()["paths"])


@functools.cache
def schema(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_text())
    return content


def unknown_settings(names: set[str]) -> set[str]:
    ours = {name for name in names if name.startswith("HEADRACE_")} - READ_ELSEWHERE
    return ours - {f"HEADRACE_{name.upper()}" for name in Settings.model_fields}


def settings_of(environment: Mapping[str, str]) -> Settings:
    """Returns the settings of a process with these variables. Raises ValueError for a value that it would refuse."""
    names = {name for name in environment if name.startswith("HEADRACE_")} - READ_ELSEWHERE
    ours = {name: environment[name] for name in names}
    with patch.dict("os.environ", ours, clear=True):
        return Settings()


def topic_as_created(topic: str, settings: Settings) -> dict[str, Any]:
    """Returns what infra.log.kafka asks a broker for when it creates the topic itself."""
    asked: list[Any] = []

    class Admin:
        def create_topics(self, new: list[Any], **options: Any) -> Any:
            asked.extend(new)
            raise InterruptedError  # no broker is needed

    log = KafkaLog(settings)
    log._admin = Admin()
    log._partition_count = lambda name: 0  # type: ignore[method-assign]
    with contextlib.suppress(InterruptedError):
        log.create_topic(topic)
    (created,) = asked
    return {
        "topicName": created.topic, "partitions": created.num_partitions, "replicas": created.replication_factor,
        "config": {name: str(value) for name, value in created.config.items()},
    }  # fmt: skip


def broker_properties(*, brokers: int) -> dict[str, str]:
    nodes = kafka_broker.plan(1, brokers=brokers)
    lines = kafka_broker._properties(Path("data"), nodes[0], nodes).splitlines()
    return dict(line.split("=", 1) for line in lines)


@functools.cache
def redis_options() -> dict[str, str]:
    """Returns the options of the Redis that `make up` starts, without those that differ between machines."""
    with tempfile.TemporaryDirectory() as folder, patch("shutil.which", return_value="redis-server"):
        words = redis_server.command(Settings(data_dir=Path(folder)))[1:]
    options = dict(zip(words[::2], words[1::2], strict=True))
    return {name: value for name, value in options.items() if name not in ("--bind", "--dir", "--daemonize")}


def options_of(words: list[str]) -> dict[str, str]:
    """Returns the --name value pairs of a command line."""
    return {words[index]: words[index + 1] for index in range(1, len(words) - 1, 2)}


ALL_TOPICS = set(topics.ALL)
