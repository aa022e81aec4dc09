"""What is wrong with the cluster's manifests: rules of Kubernetes, of the operators, and of the code they start."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from apps.http.server import DRAIN_SECONDS
from infra.settings import Settings
from tests.infra.code_facts import (
    ALL_TOPICS,
    PORTS,
    PROJECT,
    VERBS,
    broker_properties,
    broker_version,
    options_of,
    pin,
    redis_options,
    routes,
    schema,
    settings_of,
    topic_as_made,
    unknown_settings,
)
from tests.infra.test_images import DOCKERFILE

OPERATED = {"Kafka", "KafkaNodePool", "KafkaTopic", "SparkApplication", "PodMonitor", "PrometheusRule"}
SECRETS = {"HEADRACE_REDIS_URL": "redis-url", "HEADRACE_PSEUDONYM_KEY": "pseudonym-key"}
NEWEST = kubernetes_validate.latest_version()
Doc = dict[str, Any]


def documents(files: Mapping[str, str]) -> list[Doc]:
    return [
        one
        for name, text in files.items()
        if name != "kustomization.yaml"
        for one in yaml.safe_load_all(text)
        if one is not None
    ]


def problems(docs: list[Doc]) -> list[str]:
    told = [f"{doc['kind']} {doc['metadata']['name']}: {one}" for doc in docs for one in refused(doc)]
    if told:
        return told
    settings = settings_of(named(docs, "ConfigMap", "headrace-settings")["data"])
    for kind, name, pod in pods(docs):
        told += [f"{kind} {name}: {one}" for one in pod_problems(pod)]
        for container in pod["containers"]:
            told += [f"{kind} {name}: {one}" for one in container_problems(container, docs)]
    return (
        told
        + topic_problems(docs, settings)
        + kafka_problems(docs, settings)
        + spark_problems(named(docs, "SparkApplication", "stream"), docs)
        + scorer_problems(named(docs, "StatefulSet", "scorer"), settings)
        + selector_problems(docs)
        + api_problems(docs)
        + redis_problems(named(docs, "StatefulSet", "redis"))
    )


def refused(doc: Doc) -> Iterator[str]:
    """What Kubernetes, or the operator of this kind, has against it."""
    if doc["kind"] not in OPERATED:
        try:
            kubernetes_validate.validate(doc, NEWEST, strict=True)
        except (jsonschema.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            yield str(error.message)
        return
    known = schema(doc["kind"].lower())
    if doc["apiVersion"] != f"{known['group']}/{known['version']}":
        yield f"{doc['apiVersion']} is not {known['group']}/{known['version']}"
    for error in jsonschema.Draft7Validator(closed(known["schema"])).iter_errors(doc):
        yield error.message


def closed(part: Any) -> Any:
    """A schema that refuses fields it does not name, as the API server's pruning would silently drop them."""
    if isinstance(part, list):
        return [closed(one) for one in part]
    if not isinstance(part, dict):
        return part
    made = {name: closed(value) for name, value in part.items()}
    free = part.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in part
    if isinstance(part.get("properties"), dict) and part.get("type") == "object" and not free:
        if "apiVersion" in part["properties"]:  # a whole object: its metadata is Kubernetes' own
            made["properties"]["metadata"] = {"type": "object"}
        made["additionalProperties"] = False
    if part.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


def named(docs: list[Doc], kind: str, name: str) -> Doc:
    (found,) = [doc for doc in docs if doc["kind"] == kind and doc["metadata"]["name"] == name]
    return found


def pods(docs: list[Doc]) -> Iterator[tuple[str, str, Doc]]:
    for doc in docs:
        if doc["kind"] in ("Deployment", "StatefulSet"):
            yield doc["kind"], doc["metadata"]["name"], doc["spec"]["template"]["spec"]


def environment(container: Doc, docs: list[Doc]) -> dict[str, str]:
    """Variables as the process gets them; what comes from elsewhere is a stand-in."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= named(docs, "ConfigMap", source["configMapRef"]["name"])["data"]
    for one in container.get("env", []):
        found[one["name"]] = one.get("value", "0" if one["name"].endswith("SHARE") else "redis://x")
    return found


def variable_problems(container: Doc, docs: list[Doc]) -> list[str]:
    given = environment(container, docs)
    told = [f"no setting {one}" for one in unknown_settings(set(given))]
    for one in container.get("env", []):
        key = SECRETS.get(one["name"])
        if key and one.get("valueFrom", {}).get("secretKeyRef") != {"name": "headrace-secrets", "key": key}:
            told.append(f"{one['name']} is not in the Secret")
    try:
        settings_of(given)
    except ValueError as error:
        told.append(f"its settings are refused: {error}")
    return told


def container_problems(container: Doc, docs: list[Doc]) -> list[str]:
    told = []
    security = container.get("securityContext", {})
    safe = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    if security != safe:
        told.append("its container may do more than it needs")
    resources = container.get("resources", {})
    if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
        told.append("no resources")
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    expected = PORTS.get(container["name"])
    if list(ports.values()) != [expected]:
        told.append(f"its port is not {expected}")
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container.get(name, {}).get("httpGet")
        if asked and (ports.get(asked["port"]) != expected or asked["path"] not in routes()):
            told.append(f"{name} asks where nothing answers")
    if "startupProbe" not in container or "livenessProbe" not in container:
        told.append("no probes")
    if container["image"].partition(":")[0].startswith("headrace/"):
        told += variable_problems(container, docs)
        if container["args"][0] != "headrace" or container["args"][1] not in VERBS:
            told.append(f"there is no verb {container['args'][1:]}")
        data = environment(container, docs)["HEADRACE_DATA_DIR"]
        if data not in [mount["mountPath"] for mount in container["volumeMounts"]]:
            told.append("its data is on no volume")
    return told


def pod_problems(pod: Doc) -> list[str]:
    told = []
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        told.append("its pod may run as root")
    ours = [one for one in pod["containers"] if one["image"].startswith("headrace/")]
    if ours and f"USER {security.get('runAsUser')}:{security.get('runAsGroup')}" not in DOCKERFILE:
        told.append("its user is not the image's")
    pause = sum(one.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0) for one in ours)
    if pod["terminationGracePeriodSeconds"] < pause + DRAIN_SECONDS + 5:
        told.append("it is killed before it has drained")
    return told


def topic_problems(docs: list[Doc], settings: Settings) -> list[str]:
    declared = {doc["spec"]["topicName"]: doc["spec"] for doc in docs if doc["kind"] == "KafkaTopic"}
    told = [f"topics {set(declared) ^ ALL_TOPICS}"] if set(declared) != ALL_TOPICS else []
    for topic in set(declared) & ALL_TOPICS:
        made = topic_as_made(topic, settings)
        given = declared[topic] | {"config": {name: str(value) for name, value in declared[topic]["config"].items()}}
        told += [f"topic {topic}: {one} is {given[one]}, not {made[one]}" for one in made if given[one] != made[one]]
    return told


def kafka_problems(docs: list[Doc], settings: Settings) -> list[str]:
    kafka = named(docs, "Kafka", "headrace")["spec"]["kafka"]
    pools = [doc["spec"] for doc in docs if doc["kind"] == "KafkaNodePool"]
    brokers = sum(pool["replicas"] for pool in pools if "broker" in pool["roles"])
    told = []
    if schema("kafka-versions").get(kafka["version"]) != kafka["metadataVersion"]:
        told.append(f"Strimzi has no Kafka {kafka['version']} with metadata {kafka['metadataVersion']}")
    if kafka["version"].split(".")[0] != broker_version().split(".")[0]:
        told.append(f"Kafka {kafka['version']} is another generation than {broker_version()}")
    if brokers < settings.kafka_replication or not any("controller" in pool["roles"] for pool in pools):
        told.append(f"{brokers} brokers cannot keep {settings.kafka_replication} copies")
    ours = broker_properties(brokers=settings.kafka_replication)
    for name in kafka["config"].keys() & ours.keys():
        if str(kafka["config"][name]).lower() != ours[name]:
            told.append(f"Kafka: {name} is {kafka['config'][name]}, not {ours[name]}")
    (listener,) = kafka["listeners"]
    if settings.kafka_bootstrap != f"headrace-kafka-bootstrap:{listener['port']}" or listener["port"] != PORTS["kafka"]:
        told.append(f"nothing answers at {settings.kafka_bootstrap}")
    return told


def spark_problems(doc: Doc, docs: list[Doc]) -> list[str]:
    spec = doc["spec"]
    told = []
    if spec["sparkVersion"] != pin("pyspark", "stream"):
        told.append(f"Spark {spec['sparkVersion']} is not pyspark's {pin('pyspark', 'stream')}")
    if spec["image"] != f"headrace/stream:{PROJECT['version']}":
        told.append(f"image {spec['image']} is not what is built")
    if spec["arguments"] != ["stream"] or spec["restartPolicy"]["type"] != "Always":
        told.append("it is not `headrace stream`, for ever")
    program = spec["mainApplicationFile"].removeprefix("local://")
    if f"> {program}" not in DOCKERFILE:
        told.append(f"the image has no {program}")
    told += variable_problems(spec["driver"], docs) + variable_problems(spec["executor"], docs)
    given = environment(spec["driver"], docs)
    conf = json.loads(given["HEADRACE_SPARK_CONF"])
    if given["SPARK_LOCAL_IP"] != "$(POD_IP)" or set(conf.values()) != {"$(POD_IP)"}:
        told.append("executors cannot reach a driver on the loopback")
    if [port["containerPort"] for port in spec["driver"]["ports"]] != [int(given["HEADRACE_STREAM_METRICS_PORT"])]:
        told.append("its metrics are at another port")
    if int(given["HEADRACE_STREAM_METRICS_PORT"]) != PORTS["stream"]:
        told.append(f"its metrics are not at {PORTS['stream']}")
    return told


def scorer_problems(doc: Doc, settings: Settings) -> list[str]:
    (container,) = doc["spec"]["template"]["spec"]["containers"]
    given = {one["name"]: one for one in container["env"]}
    shares = int(given["HEADRACE_SCORER_SHARES"]["value"])
    told = []
    if shares != doc["spec"]["replicas"] or shares > settings.kafka_partitions:
        told.append(f"{doc['spec']['replicas']} scorers cannot divide the payments by {shares}")
    path = given["HEADRACE_SCORER_SHARE"].get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
    if path != "metadata.labels['apps.kubernetes.io/pod-index']":
        told.append("a scorer's share is not its ordinal")
    return told


def labels(docs: list[Doc]) -> list[tuple[dict[str, str], dict[str, int]]]:
    """Labels and named ports of every pod that the manifests make."""
    found = []
    for doc in docs:
        if doc["kind"] in ("Deployment", "StatefulSet"):
            template = doc["spec"]["template"]
            ports = {
                one["name"]: one["containerPort"] for part in template["spec"]["containers"] for one in part["ports"]
            }
            found.append((template["metadata"]["labels"], ports))
        if doc["kind"] == "SparkApplication":
            for part in (doc["spec"]["driver"], doc["spec"]["executor"]):
                found.append((part["labels"], {one["name"]: one["containerPort"] for one in part.get("ports", [])}))
        if doc["kind"] == "Kafka":
            found.append(({"strimzi.io/cluster": doc["metadata"]["name"]}, {}))
    return [*found, ({"tier": "airflow"}, {})]


def matches(selector: Doc, given: dict[str, str]) -> bool:
    exact = selector.get("matchLabels", {})
    for rule in selector.get("matchExpressions", []):
        if (given.get(rule["key"]) in rule["values"]) != (rule["operator"] == "In"):
            return False
    return all(given.get(name) == value for name, value in exact.items())


def selector_problems(docs: list[Doc]) -> list[str]:
    """Whoever selects pods finds some, and names ports that they have."""
    known, told = labels(docs), []
    for doc in docs:
        where, spec = f"{doc['kind']} {doc['metadata']['name']}", doc.get("spec", {})
        chosen: list[Doc] = [part["podSelector"] for part in nested(spec) if "podSelector" in part]
        if doc["kind"] in ("PodDisruptionBudget", "PodMonitor", "Deployment", "StatefulSet"):
            chosen.append(spec["selector"])
        if doc["kind"] == "Service":
            chosen.append({"matchLabels": spec["selector"]})
        told += [f"{where} selects no pod" for one in chosen if not any(matches(one, given) for given, _ in known)]
        asked = [one["targetPort"] for one in spec.get("ports", [])] if doc["kind"] == "Service" else []
        asked += [one["port"] for one in spec.get("podMetricsEndpoints", [])]
        for port in asked:
            if not any(matches(one, given) and port in ports for one in chosen for given, ports in known):
                told.append(f"{where}: its pods have no port {port}")
        if doc["kind"] == "NetworkPolicy":
            numbers = {one["port"] for part in nested(spec) for one in part.get("ports", [])}
            told += [f"{where}: nothing is at {one}" for one in numbers - set(PORTS.values()) - {53, 443, 6443}]
    return told


def nested(part: Any) -> Iterator[Doc]:
    if isinstance(part, dict):
        yield part
        for one in part.values():
            yield from nested(one)
    elif isinstance(part, list):
        for one in part:
            yield from nested(one)


def api_problems(docs: list[Doc]) -> list[str]:
    scaler = named(docs, "HorizontalPodAutoscaler", "api")["spec"]
    target = scaler["scaleTargetRef"]
    found = [doc for doc in docs if doc["kind"] == target["kind"] and doc["metadata"]["name"] == target["name"]]
    told = [] if found else ["the autoscaler scales nothing"]
    if found and "replicas" in found[0]["spec"]:
        told.append("replicas and the autoscaler fight over the number of pods")
    claims = {doc["metadata"]["name"]: doc["spec"] for doc in docs if doc["kind"] == "PersistentVolumeClaim"}
    for part in nested([doc.get("spec") for doc in docs]):
        claim = part.get("persistentVolumeClaim", {}).get("claimName")
        if claim and claims.get(claim, {}).get("accessModes") != ["ReadWriteMany"]:
            told.append(f"{claim} cannot be shared")
    return told


def redis_problems(doc: Doc) -> list[str]:
    (container,) = doc["spec"]["template"]["spec"]["containers"]
    given = options_of(container["args"])
    return [f"Redis: {name} is not {value!r}" for name, value in redis_options().items() if given.get(name) != value]
