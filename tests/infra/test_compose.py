"""infra/compose.yaml is valid, and agrees with the code."""

import re
from typing import Any

import jsonschema
import pytest
import yaml

from tests.infra.code_facts import (
    COMMANDS,
    INFRA,
    PORTS,
    PROJECT,
    broker_properties,
    broker_version,
    default,
    options_of,
    redis_options,
    routes,
    schema,
    settings_of,
    unknown_settings,
)
from tests.infra.test_images import DOCKERFILE, stages

COMPOSE = (INFRA / "compose.yaml").read_text()
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?:(:[-?])([^}]*))?\}")
SECRET = re.compile(r"PASSWORD$|SECRET$|FERNET_KEY$|PSEUDONYM_KEY$|SQL_ALCHEMY_CONN$|REDIS_URL$")
PARTS = {"api": "api", "scorer": "scorer", "stream": "stream", "airflow-api": "airflow", "redis": "redis"}
AS_THE_BROKER = (
    "process.roles", "auto.create.topics.enable", "offsets.topic.replication.factor", "offsets.retention.minutes",
    "transaction.state.log.replication.factor", "transaction.state.log.min.isr",
)  # fmt: skip


def problems(text: str) -> list[str]:
    document = yaml.safe_load(text)
    faults = [error.message for error in jsonschema.Draft7Validator(schema("compose")).iter_errors(document)]
    if faults:
        return faults
    required = {name for name, operator, _ in VARIABLE.findall(text) if operator == ":?"}
    for name, operator, _ in VARIABLE.findall(text):
        if operator != ":-" and name not in required:
            faults.append(f"nothing says what to do when {name} is not set")
    services = document["services"]
    for name, service in services.items():
        faults += [f"{name}: {fault}" for fault in service_problems(name, service, document)]
    return faults + scorer_problems(services) + kafka_problems(services["kafka"]) + redis_problems(services["redis"])


def service_problems(name: str, service: dict[str, Any], document: dict[str, Any]) -> list[str]:
    environment = service.get("environment", {})
    faults = [f"no setting {name}" for name in unknown_settings(set(environment))]
    secrets = {name: value for name, value in environment.items() if SECRET.search(name)}
    faults += [f"{name} is written down" for name, value in secrets.items() if "${" not in value]
    faults += image_problems(service)
    for part in ("profiles", "restart"):
        if part not in service:
            faults.append(f"no {part}")
    if not service.get("deploy", {}).get("resources", {}).get("limits", {}).keys() >= {"cpus", "memory"}:
        faults.append("no limits")
    test = service.get("healthcheck")
    if test is None and not service["image"].startswith("headrace/"):
        faults.append("no health check")
    faults += port_problems(name, service) + volume_problems(service, document)
    for other in service.get("depends_on", {}):
        if not set(service["profiles"]) <= set(document["services"].get(other, {}).get("profiles", [])):
            faults.append(f"{other} is not started with it")
    command = service.get("command", [])
    return faults + (process_problems(command[1], service) if command[:1] == ["headrace"] else [])


def volume_problems(service: dict[str, Any], document: dict[str, Any]) -> list[str]:
    faults = []
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("./") and not (INFRA / source).is_dir():
            faults.append(f"nothing at {source}")
        if not source.startswith("./") and source not in document["volumes"]:
            faults.append(f"no volume {source}")
    return faults


def image_problems(service: dict[str, Any]) -> list[str]:
    image, _, tag = service["image"].partition(":")
    if image.startswith("headrace/"):
        target = service["build"]["target"]
        context = (INFRA / service["build"]["context"]).resolve()
        wrong = tag != PROJECT["version"] or image != f"headrace/{target}" or target not in stages(DOCKERFILE)
        wrong = wrong or not (context / service["build"]["dockerfile"]).is_file()
        return [f"image {service['image']} is not what is built"] if wrong else []
    if not tag or tag == "latest":
        return [f"image {image} has no version"]
    return [f"Kafka {tag} is not {broker_version()}"] if image == "apache/kafka" and tag != broker_version() else []


def process_problems(command: str, service: dict[str, Any]) -> list[str]:
    faults = [] if command in COMMANDS else [f"there is no command {command}"]
    if not (service["read_only"] and service["cap_drop"] == ["ALL"]):
        faults.append("it may write where it need not")
    environment = {name: VARIABLE.sub("x", value) for name, value in service["environment"].items()}
    try:
        settings = settings_of(environment)
    except ValueError as error:
        return [*faults, f"its settings are refused: {error}"]
    if settings.kafka_bootstrap != f"kafka:{PORTS['kafka']}" or not settings.redis_url.endswith(
        f"@redis:{PORTS['redis']}/0"
    ):
        faults.append("it looks for Kafka or Redis elsewhere")
    if settings.data_dir.as_posix() not in [volume.split(":")[1] for volume in service["volumes"]]:
        faults.append("its data is on no volume")
    setting = {"score": "scorer_metrics_port", "stream": "stream_metrics_port", "serve": "port"}.get(command)
    listens = settings.host if command == "serve" else settings.metrics_host
    part = {"score": "scorer", "stream": "stream", "serve": "api"}.get(command)
    if setting and part and (getattr(settings, setting) != PORTS[part] or listens != "0.0.0.0"):  # noqa: S104
        faults.append(f"{setting} is not the {PORTS[part]} that others ask at")
    return faults


def port_problems(name: str, service: dict[str, Any]) -> list[str]:
    ports = service.get("ports", [])
    faults = [f"{port} is open to the network" for port in ports if not port.startswith("127.0.0.1:")]
    part = PARTS.get(re.sub(r"-\d+$", "", name))
    if part in ("api", "airflow") and ports != [f"127.0.0.1:{PORTS[part]}:{PORTS[part]}"]:
        faults.append(f"its port is not {PORTS[part]}")
    for port, path in re.findall(r"http://127\.0\.0\.1:(\d+)(/[\w/-]+)", str(service.get("healthcheck", ""))):
        if part and int(port) != PORTS[part]:
            faults.append(f"the health check asks at {port}")
        if part in ("api", "scorer", "stream") and path not in routes():
            faults.append(f"the health check asks for {path}")
    return faults


def scorer_problems(services: dict[str, Any]) -> list[str]:
    scorers = [service["environment"] for name, service in services.items() if name.startswith("scorer-")]
    shares = sorted(int(environment["HEADRACE_SCORER_SHARE"]) for environment in scorers)
    totals = {environment["HEADRACE_SCORER_SHARES"] for environment in scorers}
    wrong = shares != list(range(len(scorers))) or totals != {str(len(scorers))}
    too_many = len(scorers) > int(scorers[0]["HEADRACE_KAFKA_PARTITIONS"])
    return ["the scorers do not divide the payments"] if wrong or too_many else []


def kafka_problems(service: dict[str, Any]) -> list[str]:
    ours = broker_properties(brokers=1)
    given = {
        name.removeprefix("KAFKA_").replace("_", ".").lower(): value for name, value in service["environment"].items()
    }
    return [f"kafka: {name} is not {ours[name]}" for name in AS_THE_BROKER if given.get(name) != ours[name]]


def redis_problems(service: dict[str, Any]) -> list[str]:
    given = options_of(service["command"])
    return [f"redis: {name} is not {value!r}" for name, value in redis_options().items() if given.get(name) != value]


def test_the_compose_file_is_valid_and_agrees_with_the_code() -> None:
    assert problems(COMPOSE) == []


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("restart: unless-stopped", "restarts: unless-stopped", "restarts"),
        ("interval: 10s", "interval: [10]", "[10]"),
        ("HEADRACE_KAFKA_BOOTSTRAP", "HEADRACE_KAFKA_SERVERS", "no setting"),
        ('HEADRACE_API_WORKERS: "2"', 'HEADRACE_API_WORKERS: "two"', "refused"),
        ("bootstrap: kafka:9092".upper().replace("KAFKA:9092", "kafka:9092"), "BOOTSTRAP: kafka:9093", "elsewhere"),
        ("apache/kafka:4.4.0", "apache/kafka:3.9.0", "Kafka 3.9.0"),
        ("redis:7.2-bookworm", "redis:latest", "no version"),
        ("headrace/stream:0.2.0", "headrace/stream:0.0.9", "not what is built"),
        ("target: serve", "target: api", "not what is built"),
        ("[headrace, score]", "[headrace, scorer]", "there is no command"),
        ('"127.0.0.1:8000:8000"', '"8000:8000"', "open to the network"),
        ('"127.0.0.1:8000:8000"', '"127.0.0.1:8000:8001"', "port is not"),
        ('SCORER_METRICS_PORT: "9101"', 'SCORER_METRICS_PORT: "9100"', "9101"),
        ("127.0.0.1:9101/metrics", "127.0.0.1:9101/metric", "health check"),
        ('HEADRACE_SCORER_SHARE: "1"', 'HEADRACE_SCORER_SHARE: "0"', "do not divide"),
        ('HEADRACE_SCORER_SHARES: "2"', 'HEADRACE_SCORER_SHARES: "3"', "do not divide"),
        ("${REDIS_PASSWORD:?", "${REDIS_PASSWORD:-", "nothing says"),
        ("${AIRFLOW_JWT_SECRET:?set AIRFLOW_JWT_SECRET in infra/.env, see README}", "x", "written down"),
        ('CREATE_TOPICS_ENABLE: "false"', 'CREATE_TOPICS_ENABLE: "true"', "auto.create"),
        ("everysec", "always", "--appendfsync"),
        ("./grafana/dashboards", "./grafana/boards", "nothing at"),
        ('data:/var/lib/headrace"]', 'data:/var/lib/data"]', "on no volume"),
        ("profiles: [core, airflow, jobs]", "profiles: [core]", "not started"),
        ("read_only: true", "read_only: false", "may write"),
    ],
)
def test_a_change_of_one_side_is_reported(right: str, wrong: str, message: str) -> None:
    assert right in COMPOSE
    faults = problems(COMPOSE.replace(right, wrong))
    assert any(message in fault for fault in faults), faults


def test_prometheus_finds_every_process_under_the_jobs_that_the_rules_name() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    machine = yaml.safe_load((INFRA / "prometheus" / "prometheus.yml").read_text())
    containers = yaml.safe_load((INFRA / "prometheus" / "containers.yml").read_text())
    assert {name: containers[name] for name in ("global", "rule_files")} == {
        name: machine[name] for name in ("global", "rule_files")
    }
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in containers["scrape_configs"]}
    assert list(jobs) == [job["job_name"] for job in machine["scrape_configs"]]
    asked = {target for targets in jobs.values() for target in targets}
    parts = {
        name: PARTS[re.sub(r"-\d+$", "", name)]
        for name in services
        if re.sub(r"-\d+$", "", name) in ("api", "scorer", "stream")
    }
    assert asked == {f"{name}:{PORTS[part]}" for name, part in parts.items()}


def test_traces_go_where_the_collector_listens() -> None:
    collector = yaml.safe_load((INFRA / "otel" / "collector.yaml").read_text())
    endpoint = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    endpoint_setting = re.search(r"HEADRACE_OTLP_ENDPOINT=http://([\w-]+):(\d+)", COMPOSE)
    assert endpoint_setting
    assert endpoint_setting[1] in yaml.safe_load(COMPOSE)["services"]
    assert endpoint.endswith(f":{endpoint_setting[2]}")


def test_a_topic_gets_the_one_copy_that_one_broker_can_keep() -> None:
    environment = yaml.safe_load(COMPOSE)["services"]["api"]["environment"]
    settings = settings_of({name: VARIABLE.sub("x", value) for name, value in environment.items()})
    assert settings.kafka_partitions == default("kafka_partitions")
    assert settings.kafka_replication == 1
