"""infra/compose.yaml is what compose accepts, and says what the code says."""

import re
from typing import Any

import jsonschema
import pytest
import yaml

from tests.infra.code_facts import (
    INFRA,
    PORTS,
    PROJECT,
    VERBS,
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
    found = yaml.safe_load(text)
    told = [error.message for error in jsonschema.Draft7Validator(schema("compose")).iter_errors(found)]
    if told:
        return told
    required = {name for name, how, _ in VARIABLE.findall(text) if how == ":?"}
    for name, how, _ in VARIABLE.findall(text):
        if how != ":-" and name not in required:
            told.append(f"nothing says what to do when {name} is not set")
    services = found["services"]
    for name, service in services.items():
        told += [f"{name}: {one}" for one in service_problems(name, service, found)]
    return told + scorer_problems(services) + kafka_problems(services["kafka"]) + redis_problems(services["redis"])


def service_problems(name: str, service: dict[str, Any], found: dict[str, Any]) -> list[str]:
    environment = service.get("environment", {})
    told = [f"no setting {one}" for one in unknown_settings(set(environment))]
    told += [f"{one} is written down" for one, value in environment.items() if SECRET.search(one) and "${" not in value]
    told += image_problems(service)
    for part in ("profiles", "restart"):
        if part not in service:
            told.append(f"no {part}")
    if not service.get("deploy", {}).get("resources", {}).get("limits", {}).keys() >= {"cpus", "memory"}:
        told.append("no limits")
    test = service.get("healthcheck")
    if test is None and not service["image"].startswith("headrace/"):
        told.append("no health check")
    told += port_problems(name, service) + volume_problems(service, found)
    for other in service.get("depends_on", {}):
        if not set(service["profiles"]) <= set(found["services"].get(other, {}).get("profiles", [])):
            told.append(f"{other} is not started with it")
    command = service.get("command", [])
    return told + (process_problems(command[1], service) if command[:1] == ["headrace"] else [])


def volume_problems(service: dict[str, Any], found: dict[str, Any]) -> list[str]:
    told = []
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("./") and not (INFRA / source).is_dir():
            told.append(f"nothing at {source}")
        if not source.startswith("./") and source not in found["volumes"]:
            told.append(f"no volume {source}")
    return told


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


def process_problems(verb: str, service: dict[str, Any]) -> list[str]:
    told = [] if verb in VERBS else [f"there is no verb {verb}"]
    if not (service["read_only"] and service["cap_drop"] == ["ALL"]):
        told.append("it may write where it need not")
    environment = {name: VARIABLE.sub("x", value) for name, value in service["environment"].items()}
    try:
        settings = settings_of(environment)
    except ValueError as error:
        return [*told, f"its settings are refused: {error}"]
    if settings.kafka_bootstrap != f"kafka:{PORTS['kafka']}" or not settings.redis_url.endswith(
        f"@redis:{PORTS['redis']}/0"
    ):
        told.append("it looks for Kafka or Redis elsewhere")
    if settings.data_dir.as_posix() not in [volume.split(":")[1] for volume in service["volumes"]]:
        told.append("its data is on no volume")
    wanted = {"score": "scorer_metrics_port", "stream": "stream_metrics_port", "serve": "port"}.get(verb)
    listens = settings.host if verb == "serve" else settings.metrics_host
    part = {"score": "scorer", "stream": "stream", "serve": "api"}.get(verb)
    if wanted and part and (getattr(settings, wanted) != PORTS[part] or listens != "0.0.0.0"):  # noqa: S104
        told.append(f"{wanted} is not the {PORTS[part]} that others ask at")
    return told


def port_problems(name: str, service: dict[str, Any]) -> list[str]:
    told = [f"{one} is open to the network" for one in service.get("ports", []) if not one.startswith("127.0.0.1:")]
    part = PARTS.get(re.sub(r"-\d+$", "", name))
    if part in ("api", "airflow") and service.get("ports") != [f"127.0.0.1:{PORTS[part]}:{PORTS[part]}"]:
        told.append(f"its port is not {PORTS[part]}")
    for port, path in re.findall(r"http://127\.0\.0\.1:(\d+)(/[\w/-]+)", str(service.get("healthcheck", ""))):
        if part and int(port) != PORTS[part]:
            told.append(f"the health check asks at {port}")
        if part in ("api", "scorer", "stream") and path not in routes():
            told.append(f"the health check asks for {path}")
    return told


def scorer_problems(services: dict[str, Any]) -> list[str]:
    scorers = [one["environment"] for name, one in services.items() if name.startswith("scorer-")]
    shares = sorted(int(one["HEADRACE_SCORER_SHARE"]) for one in scorers)
    wrong = shares != list(range(len(scorers))) or {one["HEADRACE_SCORER_SHARES"] for one in scorers} != {
        str(len(scorers))
    }
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
    ("right", "wrong", "told"),
    [
        ("restart: unless-stopped", "restarts: unless-stopped", "restarts"),
        ("interval: 10s", "interval: [10]", "[10]"),
        ("HEADRACE_KAFKA_BOOTSTRAP", "HEADRACE_KAFKA_SERVERS", "no setting"),
        ('HEADRACE_API_WORKERS: "2"', 'HEADRACE_API_WORKERS: "two"', "refused"),
        ("bootstrap: kafka:9092".upper().replace("KAFKA:9092", "kafka:9092"), "BOOTSTRAP: kafka:9093", "elsewhere"),
        ("apache/kafka:4.4.0", "apache/kafka:3.9.0", "Kafka 3.9.0"),
        ("redis:7.2-bookworm", "redis:latest", "no version"),
        ("headrace/stream:0.1.0", "headrace/stream:0.0.9", "not what is built"),
        ("target: serve", "target: api", "not what is built"),
        ("[headrace, score]", "[headrace, scorer]", "no verb"),
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
def test_a_change_of_one_side_is_told(right: str, wrong: str, told: str) -> None:
    assert right in COMPOSE
    assert any(told in one for one in problems(COMPOSE.replace(right, wrong))), problems(COMPOSE.replace(right, wrong))


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
    told = re.search(r"HEADRACE_OTLP_ENDPOINT=http://([\w-]+):(\d+)", COMPOSE)
    assert told
    assert told[1] in yaml.safe_load(COMPOSE)["services"]
    assert endpoint.endswith(f":{told[2]}")


def test_a_topic_gets_the_one_copy_that_one_broker_can_keep() -> None:
    environment = yaml.safe_load(COMPOSE)["services"]["api"]["environment"]
    settings = settings_of({name: VARIABLE.sub("x", value) for name, value in environment.items()})
    assert settings.kafka_partitions == default("kafka_partitions")
    assert settings.kafka_replication == 1
