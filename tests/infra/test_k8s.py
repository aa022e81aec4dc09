"""The cluster's manifests are valid for Kubernetes and its operators, and agree with the code.

The base is checked as it is written; the overlays are checked where there is a kubectl to build them.
"""

import copy
import re
import shutil
import subprocess

import pytest
import yaml

from infra import topics
from tests.infra.cluster_rules import SECRETS, documents, named, problems, refused
from tests.infra.code_facts import INFRA, PROJECT, pin, unknown_settings
from tests.infra.test_images import DOCKERFILE

K8S = INFRA / "k8s"
BASE = {path.name: path.read_text() for path in sorted((K8S / "base").glob("*.yaml"))}


def test_the_base_is_valid_and_agrees_with_the_code() -> None:
    assert problems(documents(BASE)) == []


CHANGES = [
    ("api.yaml", "terminationGracePeriodSeconds", "gracePeriodSeconds", "gracePeriodSeconds"),
    ("api.yaml", "autoscaling/v2", "autoscaling/v2beta2", "schema"),
    ("api.yaml", "path: /readyz", "path: /ready", "readinessProbe"),
    ("api.yaml", "containerPort: 8000", "containerPort: 8080", "port is not 8000"),
    ("api.yaml", "[headrace, serve]", "[headrace, api]", "there is no command"),
    ("api.yaml", "HEADRACE_API_WORKERS", "HEADRACE_WORKERS", "no setting"),
    ("api.yaml", "seconds: 8}", "seconds: 25}", "before it has drained"),
    ("api.yaml", "key: redis-url", "key: url", "not in the Secret"),
    ("api.yaml", "kind: Deployment, name: api", "kind: Deployment, name: app", "scales nothing"),
    ("api.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "more than it needs"),
    ("api.yaml", "runAsUser: 10001", "runAsUser: 1000", "not the image's"),
    (
        "api.yaml",
        "selector: {app.kubernetes.io/name: api}",
        "selector: {app.kubernetes.io/name: web}",
        "selects no pod",
    ),
    ("scorer.yaml", "replicas: 2", "replicas: 3", "cannot divide"),
    ("scorer.yaml", "pod-index", "pod", "not its ordinal"),
    ("scorer.yaml", "9101", "9100", "port is not 9101"),
    ("settings.yaml", 'PARTITIONS: "12"', 'PARTITIONS: "24"', "partitions is 12, not 24"),
    ("settings.yaml", 'REPLICATION: "3"', 'REPLICATION: "5"', "cannot keep 5 copies"),
    ("settings.yaml", 'DAYS: "400"', 'DAYS: "30"', "config is"),
    ("settings.yaml", "headrace-kafka-bootstrap:9092", "kafka:9092", "nothing answers"),
    ("topics.yaml", "topicName: decisions", "topicName: alerts", "topics"),
    ("topics.yaml", "min.insync.replicas: 2", "min.insync.replicas: 1", "config is"),
    ("topics.yaml", "kafka.strimzi.io/v1\n", "kafka.strimzi.io/v1beta2\n", "v1beta2"),
    ("kafka.yaml", "roles: [broker]", "role: [broker]", "role"),
    ("kafka.yaml", "version: 4.3.1", "version: 3.9.0", "no Kafka 3.9.0"),
    ("kafka.yaml", "auto.create.topics.enable: false", "auto.create.topics.enable: true", "auto.create"),
    ("stream.yaml", "sparkVersion: 4.3.0", "sparkVersion: 4.2.0", "Spark 4.2.0"),
    ("stream.yaml", "headrace/stream:0.2.0", "headrace/stream:0.0.9", "not what is built"),
    ("stream.yaml", "restartPolicy", "restarts", "restarts"),
    ("stream.yaml", "arguments: [stream]", "arguments: [features]", "for ever"),
    ("stream.yaml", "bin/headrace.py", "bin/stream.py", "the image has no"),
    ("stream.yaml", "value: $(POD_IP)", "value: 127.0.0.1", "loopback"),
    ("stream.yaml", "9102", "9103", "9102"),
    ("data.yaml", "ReadWriteMany]", "ReadWriteOnce]", "cannot be shared"),
    ("redis.yaml", "noeviction", "allkeys-lru", "maxmemory-policy"),
    ("network.yaml", "port: 6379", "port: 6380", "nothing is at 6380"),
    ("monitoring.yaml", "port: metrics", "port: numbers", "no port numbers"),
]


@pytest.mark.parametrize(
    ("name", "right", "wrong", "message"), CHANGES, ids=[f"{change[0]}: {change[2]}" for change in CHANGES]
)
def test_a_change_of_one_side_is_reported(name: str, right: str, wrong: str, message: str) -> None:
    assert right in BASE[name]
    faults = problems(documents(BASE | {name: BASE[name].replace(right, wrong)}))
    assert any(message in fault for fault in faults), faults


def test_the_kustomization_of_the_base_lists_every_file() -> None:
    listed = yaml.safe_load(BASE["kustomization.yaml"])
    assert sorted(listed["resources"]) == sorted(set(BASE) - {"kustomization.yaml"})
    assert {image["name"]: image["newTag"] for image in listed["images"]} == {"headrace/serve": PROJECT["version"]}
    assert {doc["metadata"].get("namespace", "headrace") for doc in documents(BASE)} == {"headrace"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl to build overlays with")
@pytest.mark.parametrize("overlay", ["small", "large"])
def test_an_overlay_is_as_valid_as_the_base(overlay: str) -> None:
    manifests = subprocess.run(
        ["kubectl", "kustomize", str(K8S / "overlays" / overlay)], capture_output=True, text=True, check=True
    ).stdout
    docs = documents({"overlay": manifests})
    assert problems(docs) == []
    kinds = {(doc["kind"], doc["metadata"]["name"]) for doc in documents(BASE)}
    missing = kinds - {(doc["kind"], doc["metadata"]["name"]) for doc in docs}
    assert missing == ({("KafkaNodePool", "controller")} if overlay == "small" else set())
    image = named(docs, "Deployment", "api")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == f"headrace/serve:{PROJECT['version']}"


def test_airflow_runs_our_image_of_the_pinned_version_with_known_settings() -> None:
    values = yaml.safe_load((K8S / "airflow-values.yaml").read_text())
    assert values["airflowVersion"] == pin("apache-airflow", "dags")
    assert values["images"]["airflow"]["repository"] == "headrace/dags"
    assert values["images"]["airflow"]["tag"] == PROJECT["version"]
    names = {variable["name"] for variable in values["env"]} | {variable["envName"] for variable in values["secret"]}
    assert not unknown_settings(names)
    assert {variable["envName"]: variable["secretKey"] for variable in values["secret"]} == SECRETS
    assert f"USER {values['uid']}:{values['gid']}" in DOCKERFILE
    (volume,) = values["volumes"]
    assert named(documents(BASE), "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
    (mount,) = values["volumeMounts"]
    assert mount["mountPath"] == named(documents(BASE), "ConfigMap", "headrace-settings")["data"]["HEADRACE_DATA_DIR"]


def test_prometheus_scrapes_under_the_jobs_that_the_rules_name_and_takes_the_rules() -> None:
    jobs = yaml.safe_load((INFRA / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    monitors = [doc for doc in documents(BASE) if doc["kind"] == "PodMonitor"]
    named_as = {monitor["spec"]["podMetricsEndpoints"][0]["relabelings"][0]["replacement"] for monitor in monitors}
    assert named_as == {job["job_name"] for job in jobs}
    command = re.search(r"printf '([^']+)'", (K8S / "README.md").read_text())
    assert command
    rules = (INFRA / "prometheus" / "alerts.yml").read_text()
    text = command[1].replace("\\n", "\n") + "".join(f"  {line}\n" for line in rules.splitlines())
    rule = yaml.safe_load(text)
    assert list(refused(rule)) == []
    broken = copy.deepcopy(rule)
    broken["spec"]["groups"][0]["rules"][0]["expression"] = broken["spec"]["groups"][0]["rules"][0].pop("expr")
    assert list(refused(broken))


def test_topics_are_kept_as_long_as_the_code_keeps_them() -> None:
    docs = documents(BASE)
    for doc in docs:
        if doc["kind"] == "KafkaTopic" and doc["spec"]["topicName"] in topics.KEPT_FOR_EVER:
            assert doc["spec"]["config"]["retention.ms"] == -1
