"""Finds faults in the cluster's manifests, by the rules of Kubernetes, the operators, and the code that they start."""

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
    COMMANDS,
    PORTS,
    PROJECT,
    broker_properties,
    broker_version,
    options_of,
    pin,
    redis_options,
    routes,
    schema,
    settings_of,
    topic_as_created,
    unknown_settings,
)
from tests.infra.test_images import DOCKERFILE

OPERATED = {"Kafka", "KafkaNodePool", "KafkaTopic", "SparkApplication", "PodMonitor", "PrometheusRule"}
SECRETS = {"HEADRACE_REDIS_URL": "redis-url", "HEADRACE_PSEUDONYM_KEY": "pseudonym-key"}
NEWEST = kubernetes_validate.latest_version()
Doc = dict[str, Any]


def documents(files: Mapping[str, str]) -> list[Doc]:
    return [
        doc
        for name, text in files.items()
        if name != "kustomization.yaml"
        for doc in yaml.safe_load_all(text)
        if doc is not None
    ]


def problems(docs: list[Doc]) -> list[str]:
    faults = [f"{doc['kind']} {doc['metadata']['name']}: {fault}" for doc in docs for fault in refused(doc)]
    if faults:
        return faults
    settings = settings_of(named(docs, "ConfigMap", "headrace-settings")["data"])
    for kind, name, pod in pods(docs):
        faults += [f"{kind} {name}: {fault}" for fault in pod_problems(pod)]
        for container in pod["containers"]:
            faults += [f"{kind} {name}: {fault}" for fault in container_problems(container, docs)]
    return (
        faults
        + topic_problems(docs, settings)
        + kafka_problems(docs, settings)
        + spark_problems(named(docs, "SparkApplication", "stream"), docs)
        + scorer_problems(named(docs, "StatefulSet", "scorer"), settings)
        + selector_problems(docs)
        + api_problems(docs)
        + redis_problems(named(docs, "StatefulSet", "redis"))
    )


def refused(doc: Doc) -> Iterator[str]:
    """Yields why Kubernetes, or the operator of this kind, would refuse it."""
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
    """Returns a schema that refuses unknown fields, which the API server would silently drop."""
    if isinstance(part, list):
        return [closed(item) for item in part]
    if not isinstance(part, dict):
        return part
    strict = {name: closed(value) for name, value in part.items()}
    free = part.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in part
    if isinstance(part.get("properties"), dict) and part.get("type") == "object" and not free:
        if "apiVersion" in part["properties"]:  # a whole object: its metadata is Kubernetes' own
            strict["properties"]["metadata"] = {"type": "object"}
        strict["additionalProperties"] = False
    if part.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
    return strict


def named(docs: list[Doc], kind: str, name: str) -> Doc:
    (doc,) = [doc for doc in docs if doc["kind"] == kind and doc["metadata"]["name"] == name]
    return doc


def pods(docs: list[Doc]) -> Iterator[tuple[str, str, Doc]]:
    for doc in docs:
        if doc["kind"] in ("Deployment", "StatefulSet"):
            yield doc["kind"], doc["metadata"]["name"], doc["spec"]["template"]["spec"]


def environment(container: Doc, docs: list[Doc]) -> dict[str, str]:
    """Returns the variables that the process gets, with stand-ins for values from elsewhere."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        variables |= named(docs, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container.get("env", []):
        variables[variable["name"]] = variable.get("value", "0" if variable["name"].endswith("SHARE") else "redis://x")
    return variables


def variable_problems(container: Doc, docs: list[Doc]) -> list[str]:
    given = environment(container, docs)
    faults = [f"no setting {name}" for name in unknown_settings(set(given))]
    for variable in container.get("env", []):
        key = SECRETS.get(variable["name"])
        if key and variable.get("valueFrom", {}).get("secretKeyRef") != {"name": "headrace-secrets", "key": key}:
            faults.append(f"{variable['name']} is not in the Secret")
    try:
        settings_of(given)
    except ValueError as error:
        faults.append(f"its settings are refused: {error}")
    return faults


def container_problems(container: Doc, docs: list[Doc]) -> list[str]:
    faults = []
    security = container.get("securityContext", {})
    safe = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    if security != safe:
        faults.append("its container may do more than it needs")
    resources = container.get("resources", {})
    if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
        faults.append("no resources")
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    expected = PORTS.get(container["name"])
    if list(ports.values()) != [expected]:
        faults.append(f"its port is not {expected}")
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container.get(name, {}).get("httpGet")
        if asked and (ports.get(asked["port"]) != expected or asked["path"] not in routes()):
            faults.append(f"{name} asks where nothing answers")
    if "startupProbe" not in container or "livenessProbe" not in container:
        faults.append("no probes")
    if container["image"].partition(":")[0].startswith("headrace/"):
        faults += variable_problems(container, docs)
        if container["args"][0] != "headrace" or container["args"][1] not in COMMANDS:
            faults.append(f"there is no command {container['args'][1:]}")
        data = environment(container, docs)["HEADRACE_DATA_DIR"]
        if data not in [mount["mountPath"] for mount in container["volumeMounts"]]:
            faults.append("its data is on no volume")
    return faults


def pod_problems(pod: Doc) -> list[str]:
    faults = []
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        faults.append("its pod may run as root")
    ours = [container for container in pod["containers"] if container["image"].startswith("headrace/")]
    if ours and f"USER {security.get('runAsUser')}:{security.get('runAsGroup')}" not in DOCKERFILE:
        faults.append("its user is not the image's")
    pause = sum(
        container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0) for container in ours
    )
    if pod["terminationGracePeriodSeconds"] < pause + DRAIN_SECONDS + 5:
        faults.append("it is killed before it has drained")
    return faults


def topic_problems(docs: list[Doc], settings: Settings) -> list[str]:
    declared = {doc["spec"]["topicName"]: doc["spec"] for doc in docs if doc["kind"] == "KafkaTopic"}
    faults = [f"topics {set(declared) ^ ALL_TOPICS}"] if set(declared) != ALL_TOPICS else []
    for topic in set(declared) & ALL_TOPICS:
        created = topic_as_created(topic, settings)
        given = declared[topic] | {"config": {name: str(value) for name, value in declared[topic]["config"].items()}}
        faults += [
            f"topic {topic}: {name} is {given[name]}, not {created[name]}"
            for name in created
            if given[name] != created[name]
        ]
    return faults


def kafka_problems(docs: list[Doc], settings: Settings) -> list[str]:
    kafka = named(docs, "Kafka", "headrace")["spec"]["kafka"]
    pools = [doc["spec"] for doc in docs if doc["kind"] == "KafkaNodePool"]
    brokers = sum(pool["replicas"] for pool in pools if "broker" in pool["roles"])
    faults = []
    if schema("kafka-versions").get(kafka["version"]) != kafka["metadataVersion"]:
        faults.append(f"Strimzi has no Kafka {kafka['version']} with metadata {kafka['metadataVersion']}")
    if kafka["version"].split(".")[0] != broker_version().split(".")[0]:
        faults.append(f"Kafka {kafka['version']} is another generation than {broker_version()}")
    if brokers < settings.kafka_replication or not any("controller" in pool["roles"] for pool in pools):
        faults.append(f"{brokers} brokers cannot keep {settings.kafka_replication} copies")
    ours = broker_properties(brokers=settings.kafka_replication)
    for name in kafka["config"].keys() & ours.keys():
        if str(kafka["config"][name]).lower() != ours[name]:
            faults.append(f"Kafka: {name} is {kafka['config'][name]}, not {ours[name]}")
    (listener,) = kafka["listeners"]
    if settings.kafka_bootstrap != f"headrace-kafka-bootstrap:{listener['port']}" or listener["port"] != PORTS["kafka"]:
        faults.append(f"nothing answers at {settings.kafka_bootstrap}")
    return faults


def spark_problems(doc: Doc, docs: list[Doc]) -> list[str]:
    spec = doc["spec"]
    faults = []
    if spec["sparkVersion"] != pin("pyspark", "stream"):
        faults.append(f"Spark {spec['sparkVersion']} is not pyspark's {pin('pyspark', 'stream')}")
    if spec["image"] != f"headrace/stream:{PROJECT['version']}":
        faults.append(f"image {spec['image']} is not what is built")
    if spec["arguments"] != ["stream"] or spec["restartPolicy"]["type"] != "Always":
        faults.append("it is not `headrace stream`, for ever")
    program = spec["mainApplicationFile"].removeprefix("local://")
    if f"> {program}" not in DOCKERFILE:
        faults.append(f"the image has no {program}")
    faults += variable_problems(spec["driver"], docs) + variable_problems(spec["executor"], docs)
    given = environment(spec["driver"], docs)
    conf = json.loads(given["HEADRACE_SPARK_CONF"])
    if given["SPARK_LOCAL_IP"] != "$(POD_IP)" or set(conf.values()) != {"$(POD_IP)"}:
        faults.append("executors cannot reach a driver on the loopback")
    if [port["containerPort"] for port in spec["driver"]["ports"]] != [int(given["HEADRACE_STREAM_METRICS_PORT"])]:
        faults.append("its metrics are at another port")
    if int(given["HEADRACE_STREAM_METRICS_PORT"]) != PORTS["stream"]:
        faults.append(f"its metrics are not at {PORTS['stream']}")
    return faults


def scorer_problems(doc: Doc, settings: Settings) -> list[str]:
    (container,) = doc["spec"]["template"]["spec"]["containers"]
    given = {variable["name"]: variable for variable in container["env"]}
    shares = int(given["HEADRACE_SCORER_SHARES"]["value"])
    faults = []
    if shares != doc["spec"]["replicas"] or shares > settings.kafka_partitions:
        faults.append(f"{doc['spec']['replicas']} scorers cannot divide the payments by {shares}")
    path = given["HEADRACE_SCORER_SHARE"].get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
    if path != "metadata.labels['apps.kubernetes.io/pod-index']":
        faults.append("a scorer's share is not its ordinal")
    return faults


def labels(docs: list[Doc]) -> list[tuple[dict[str, str], dict[str, int]]]:
    """Returns labels and named ports of every pod that the manifests declare."""
    declared = []
    for doc in docs:
        if doc["kind"] in ("Deployment", "StatefulSet"):
            template = doc["spec"]["template"]
            ports = {
                port["name"]: port["containerPort"] for part in template["spec"]["containers"] for port in part["ports"]
            }
            declared.append((template["metadata"]["labels"], ports))
        if doc["kind"] == "SparkApplication":
            for part in (doc["spec"]["driver"], doc["spec"]["executor"]):
                declared.append(
                    (part["labels"], {port["name"]: port["containerPort"] for port in part.get("ports", [])})
                )
        if doc["kind"] == "Kafka":
            declared.append(({"strimzi.io/cluster": doc["metadata"]["name"]}, {}))
    return [*declared, ({"tier": "airflow"}, {})]


def matches(selector: Doc, given: dict[str, str]) -> bool:
    exact = selector.get("matchLabels", {})
    for rule in selector.get("matchExpressions", []):
        if (given.get(rule["key"]) in rule["values"]) != (rule["operator"] == "In"):
            return False
    return all(given.get(name) == value for name, value in exact.items())


def selector_problems(docs: list[Doc]) -> list[str]:
    """Checks that every selector matches a pod, and that the ports it names exist there."""
    known, faults = labels(docs), []
    for doc in docs:
        where, spec = f"{doc['kind']} {doc['metadata']['name']}", doc.get("spec", {})
        selectors: list[Doc] = [part["podSelector"] for part in nested(spec) if "podSelector" in part]
        if doc["kind"] in ("PodDisruptionBudget", "PodMonitor", "Deployment", "StatefulSet"):
            selectors.append(spec["selector"])
        if doc["kind"] == "Service":
            selectors.append({"matchLabels": spec["selector"]})
        faults += [
            f"{where} selects no pod"
            for selector in selectors
            if not any(matches(selector, given) for given, _ in known)
        ]
        asked = [port["targetPort"] for port in spec.get("ports", [])] if doc["kind"] == "Service" else []
        asked += [port["port"] for port in spec.get("podMetricsEndpoints", [])]
        for port in asked:
            if not any(matches(selector, given) and port in ports for selector in selectors for given, ports in known):
                faults.append(f"{where}: its pods have no port {port}")
        if doc["kind"] == "NetworkPolicy":
            numbers = {port["port"] for part in nested(spec) for port in part.get("ports", [])}
            faults += [f"{where}: nothing is at {number}" for number in numbers - set(PORTS.values()) - {53, 443, 6443}]
    return faults


def nested(part: Any) -> Iterator[Doc]:
    if isinstance(part, dict):
        yield part
        for value in part.values():
            yield from nested(value)
    elif isinstance(part, list):
        for item in part:
            yield from nested(item)


def api_problems(docs: list[Doc]) -> list[str]:
    scaler = named(docs, "HorizontalPodAutoscaler", "api")["spec"]
    target = scaler["scaleTargetRef"]
    scaled = [doc for doc in docs if doc["kind"] == target["kind"] and doc["metadata"]["name"] == target["name"]]
    faults = [] if scaled else ["the autoscaler scales nothing"]
    if scaled and "replicas" in scaled[0]["spec"]:
        faults.append("replicas and the autoscaler fight over the number of pods")
    claims = {doc["metadata"]["name"]: doc["spec"] for doc in docs if doc["kind"] == "PersistentVolumeClaim"}
    for part in nested([doc.get("spec") for doc in docs]):
        claim = part.get("persistentVolumeClaim", {}).get("claimName")
        if claim and claims.get(claim, {}).get("accessModes") != ["ReadWriteMany"]:
            faults.append(f"{claim} cannot be shared")
    return faults


def redis_problems(doc: Doc) -> list[str]:
    (container,) = doc["spec"]["template"]["spec"]["containers"]
    given = options_of(container["args"])
    return [f"Redis: {name} is not {value!r}" for name, value in redis_options().items() if given.get(name) != value]
